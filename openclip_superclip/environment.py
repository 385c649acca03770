"""Whether an optional dependency is there."""

import ctypes
import importlib.util
import platform
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from .errors import InputError


def check_matplotlib(what: str) -> None:
    """Raises InputError, with the extra to install, where `what` cannot draw."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            f"{what} draws with matplotlib, which is not installed: install the extra [report], or "
            "pip install matplotlib"
        )


def check_scipy(what: str) -> None:
    """Raises InputError, with the extra to install, where `what` cannot compute its intervals."""
    if importlib.util.find_spec("scipy") is None:
        raise InputError(
            f"{what} takes its intervals from scipy, which is not installed: install the extra [report], or "
            "pip install scipy"
        )


def check_clip_benchmark(what: str) -> None:
    """Raises InputError, with the extra to install, where `what` cannot evaluate."""
    for package in ("clip_benchmark", "requests"):  # which CLIP_benchmark imports and does not ask for
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"{what} measures with {package}, which is not installed: install the extra [eval], or "
                "pip install clip-benchmark requests"
            )


def check_torchmetrics(what: str) -> None:
    """Raises InputError, with the extra to install, where `what` cannot be measured."""
    if importlib.util.find_spec("torchmetrics") is None:
        raise InputError(
            f"{what} measures with torchmetrics, which is not installed: install the extra [dense], or "
            "pip install torchmetrics clip-benchmark requests"
        )


def check_datasets(what: str, extra: str) -> None:
    """Raises InputError, with the extra to install, where `what` cannot be read."""
    if importlib.util.find_spec("datasets") is None:
        raise InputError(
            f"{what} is read with datasets, which is not installed: install the extra [{extra}], or "
            "pip install datasets"
        )


def check_starlette(what: str) -> None:
    """Raises InputError, with the extra to install, where `what` cannot answer a browser."""
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"{what} answers with {package}, which is not installed: install the extra [serve], or "
                "pip install starlette uvicorn matplotlib"
            )


def check_horovod() -> None:
    """Raises InputError, with the script to run, where there is no Horovod for this PyTorch."""
    try:
        importlib.import_module("horovod.torch")
    except ImportError as error:
        from .files import shipped_folder

        raise InputError(
            f"--horovod: Horovod is not installed for this PyTorch ({' '.join(str(error).split())}): "
            f"PYTHON={sys.executable} bash {shipped_folder('slurm')}/build-horovod.sh builds and installs it"
        ) from error


def check_device(name: str) -> None:
    """Makes the device of --device the current one; InputError where torch cannot use it here."""
    import torch

    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device is {name}, which torch cannot use here: {reason}") from error
    if torch.device(name).type == "cuda":
        torch.cuda.set_device(name)


def versions(*names: str) -> dict[str, str]:
    """Returns the version of each named distribution, and of "python"."""
    return {name: platform.python_version() if name == "python" else version(name) for name in names}


def end_with_parent(death_signal: int = signal.SIGKILL) -> None:
    """Has the kernel end this process when its parent dies, so that nothing goes on that is given up."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux alone
    if prctl:
        prctl(1, int(death_signal))


@contextmanager
def replaced(owner: object, **values: object) -> Iterator[None]:
    """Gives attributes of a module or class other values, and their own back at the end."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
