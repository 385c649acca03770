"""Optional packages: the extras that install them, and the error if one of them is missing."""

import importlib.util

from .errors import InputError

EXTRAS = {  # with the packages that each installs
    "report": ("matplotlib", "scipy"),
    "eval": ("clip_benchmark", "requests"),
    "horovod": ("horovod",),
}


def require(what: str, extra: str, *packages: str) -> None:
    """Raises InputError if a package that `what` needs is not installed, naming the extra to
    install, if any. The default of `packages` is all packages of the extra."""
    packages = packages or EXTRAS.get(extra, ())
    for package in packages:
        if importlib.util.find_spec(package) is None:
            install = " ".join(packages).replace("_", "-")
            of_extra = f"install the extra [{extra}], or " if extra else ""
            raise InputError(
                f"{what} needs {package}, which is not installed: {of_extra}pip install {install}"
            )
