"""Declarative checks of command lines, runs and files: lists of rules with messages."""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .errors import InputError


@dataclass(frozen=True)
class Rule:
    """A condition that is an error.

    Args:
        message: the error, a format string in which `{name}` is an attribute of the facts and `{found}` is what
            `broken` returned; a literal brace is doubled.
        broken: of the facts; true, or a value such as a list of names, if the rule is broken.
    """

    message: str
    broken: Callable[[Any], Any]


def check(rules: Iterable[Rule], facts: Any) -> None:
    """Raises InputError with the message of the first rule that `facts`, an object such as a dataclass, breaks."""
    for rule in rules:
        if found := rule.broken(facts):
            raise InputError(rule.message.format(**vars(facts) | {"found": found}))


def at_least(options: argparse.Namespace, **least: float) -> None:
    """Raises InputError if an option, given by name, is smaller than its smallest value; None passes."""
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and not value >= smallest:  # NaN is refused too
            raise InputError(f"--{name.replace('_', '-')} is {value}; expected {smallest} or more")
