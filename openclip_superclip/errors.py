"""User errors, reported in one line."""

import sys
from collections.abc import Callable, Iterable


class InputError(ValueError):
    """An invalid flag, file or model; its one-line message says what was found and what to do."""


def reason(error: BaseException) -> str:
    """Returns an error's text in one line, or the name of its class if there is no text."""
    return " ".join(str(error).split()) or type(error).__name__


def listed(names: Iterable, most: int = 12) -> str:
    """Returns the first names and the number of further ones, for a message."""
    names = [str(name) for name in names]
    more = [f"{len(names) - most:,} more"] * (len(names) > most)
    return ", ".join([*names[:most], *more])


def one_line(error: InputError) -> str:
    """Returns the message, without the traceback that torch adds to an error of a data-loading worker."""
    return str(error).rstrip().rpartition("\n")[2].rpartition("InputError: ")[2]


def print_in_one_line(take_back: Callable[[], None]) -> None:
    """Makes Python report an InputError that ends the process in one line, after undoing changes with `take_back`."""
    excepthook = sys.excepthook

    def report(kind, error, traceback):
        take_back()
        if issubclass(kind, InputError):
            print(f"error: {one_line(error)}", file=sys.stderr)
        else:
            excepthook(kind, error, traceback)

    sys.excepthook = report
