"""Numbers on command lines that are too small."""

import argparse

from .errors import InputError


def check_least(options: argparse.Namespace, **least: float) -> None:
    """Raises InputError for an option below the least that it can be, given by name; one that is None passes."""
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and not value >= smallest:
            raise InputError(f"--{name.replace('_', '-')} is {value}; expected {smallest} or more")
