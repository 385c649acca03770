"""Whether an optional dependency is there."""

import importlib.util

from .errors import InputError


def check_matplotlib(what: str) -> None:
    """Raises InputError, with the extra to install, where `what` cannot draw."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            f"{what} draws with matplotlib, which is not installed: install the extra [report], or "
            "pip install matplotlib"
        )
