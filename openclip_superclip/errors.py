"""User errors, reported in one line."""

import sys
from collections.abc import Callable, Iterable


class InputError(ValueError):
    """A flag, file or model that cannot work; its message is one line that says what was found and what to do."""


def reason(error: BaseException) -> str:
    """Returns an error's text in one line, to quote in a message; the name of its class if it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


def listed(names: Iterable, most: int = 12) -> str:
    """Returns names for a message: the first ones, and how many more there are."""
    names = [str(name) for name in names]
    more = [f"{len(names) - most:,} more"] * (len(names) > most)
    return ", ".join([*names[:most], *more])


def one_line(error: InputError) -> str:
    """Returns the message; torch hands on what a data loader's worker raised as the traceback that ends with it."""
    return str(error).rstrip().rpartition("\n")[2].rpartition("InputError: ")[2]


def print_in_one_line(take_back: Callable[[], None]) -> None:
    """Makes Python report an InputError that ends the process in one line, without the traceback.

    Args:
        take_back: is called before any error is reported, to undo what the run has done.
    """
    excepthook = sys.excepthook

    def report(kind, error, traceback):
        take_back()
        if issubclass(kind, InputError):
            print(f"error: {one_line(error)}", file=sys.stderr)
        else:
            excepthook(kind, error, traceback)

    sys.excepthook = report
