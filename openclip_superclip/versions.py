"""The versions of what a result depends on."""

import platform
from importlib.metadata import version


def versions(*names: str) -> dict[str, str]:
    """Returns the version of each named distribution, and of "python"."""
    return {name: platform.python_version() if name == "python" else version(name) for name in names}
