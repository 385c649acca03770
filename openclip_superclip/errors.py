"""User errors, reported in one line, and checks of options."""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from .removed import removed_flag


class InputError(ValueError):
    """An invalid flag, file or model; its one-line message says what was found and what to do."""


class Parser(argparse.ArgumentParser):
    """A command's parser: a flag cannot be abbreviated, and an error is printed in one line."""

    def __init__(self, command: str, description: str, example: str = "", **options):
        prog = f"superclip {command}"
        epilog = f"example: {prog} {example}".rstrip()
        options = {"epilog": epilog, "description": description, **options}
        super().__init__(prog=prog, allow_abbrev=False, **options)

    def option(self, flag: str, help: str, *aliases: str, **options) -> None:
        """Adds an option or argument with its help; the options are argparse's."""
        self.add_argument(flag, *aliases, help=help, **options)

    def error(self, message: str):
        self.exit(2, f"error: {printable(explained(message, self))}\n")


def explained(message: str, parser: argparse.ArgumentParser) -> str:
    """Returns an error of a parser, with similar flags for those that it does not have, and how
    to list them."""
    near = []
    if message.startswith("unrecognized arguments"):
        if removed := removed_flag(message):
            return removed
        if ".tar" in message:
            return f"{message}: put a pattern with braces in quotes, '{{0..9}}.tar', for the shell"
        flags = re.findall(r"--[\w-]+", parser.format_usage())
        fields = getattr(parser, "recipe_fields", ())  # that --set takes
        for unknown in re.findall(r"(?<!\S)--[\w-]+", message):
            field = unknown.removeprefix("--").replace("-", "_")
            if field in fields:
                near.append(f"--set {field}=VALUE")
            else:
                near += difflib.get_close_matches(unknown, flags, n=1)
    meant = f"; did you mean {' and '.join(near)}?" if near else ""
    return f"{message}{meant} ({parser.prog} --help lists every flag)"


def refuse(problems: Iterable[str]) -> None:
    """Raises InputError with the first problem, if there is one."""
    for problem in problems:
        raise InputError(problem)


def at_least(options: object, **least: float) -> None:
    """Raises InputError if an option, an attribute, is smaller than its smallest value; None
    passes."""
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and not value >= smallest:  # NaN is refused too
            raise InputError(f"--{name.replace('_', '-')} is {value}; expected {smallest} or more")


def no_effect(options: argparse.Namespace, place: str, *names: str) -> None:
    """Raises InputError if an option, by name, differs from None, "" and False: it has no effect
    with `place`."""
    for name in names:
        if getattr(options, name):
            raise InputError(
                f"--{name.replace('_', '-')} has no effect with {place}: leave one of them out"
            )


@contextmanager
def as_input_error(what: str, advice: str = "") -> Iterator[None]:
    """Raises InputError, "`what` (the reason)`advice`", for every error of its block, unless it is
    an InputError already.

    The block calls libraries, which raise anything for damaged files and wrong configurations.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what} ({reason(error)[:200]}){advice}") from error


def reason(error: BaseException) -> str:
    """Returns an error's text in one line, without addresses in memory, or the name of its class
    if there is none."""
    text = re.sub(r" ?<[^<>]* object at 0x[0-9a-f]+>", "", str(error))
    if isinstance(error, KeyError):  # whose text is the key alone
        text = f"KeyError: {text}"
    return " ".join(text.split()) or type(error).__name__


def listed(names: Iterable, most: int = 12, separator: str = ", ") -> str:
    """Returns the first names and the number of further ones, for a message."""
    names = [str(name) for name in names]
    shown = names[:most]
    if len(names) > most:
        shown.append(f"{len(names) - most:,} more")
    return separator.join(shown)


# Characters that change what a terminal shows: control characters, directions of writing, and
# halves of characters, which Python reads from file names that are not UTF-8.
CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

IN_TEXT = re.compile(rf"(?![\n\t]){CONTROL.pattern}")  # not the ends of lines and tabs


def printable(text: str, control: re.Pattern = CONTROL) -> str:
    """Returns a text with control characters as escapes, such as \\x1b."""
    return control.sub(_escape, text)


def _escape(match: re.Match) -> str:
    return match[0].encode("unicode_escape").decode()


def one_line(error: BaseException) -> str:
    """Returns the text of an InputError in one line; of other errors, and of one to which torch has
    added the traceback of a worker, the last line."""
    text = str(error).rstrip()
    if not isinstance(error, InputError) or text.startswith("Caught "):  # by torch, in a worker
        text = text.rpartition("\n")[2].rpartition("InputError: ")[2]
    return printable(text) or type(error).__name__


def print_in_one_line(take_back: Callable[[], None]) -> None:
    """Makes Python report an InputError that ends the process in one line, after undoing changes
    with `take_back`."""
    excepthook = sys.excepthook

    def report(kind, error, traceback):
        take_back()
        if issubclass(kind, InputError):
            to_stderr(f"error: {one_line(error)}")
        else:
            excepthook(kind, error, traceback)

    sys.excepthook = report


def to_stderr(text: str) -> None:
    """Prints a line to standard error at once, like `to_stdout`: signals may end the process."""
    print(printable(text, IN_TEXT), file=sys.stderr, flush=True)


def to_stdout(text: str, end: str = "\n") -> None:
    """Prints a text with control characters, which may be in the names of files, as escapes."""
    print(printable(text, IN_TEXT), end=end, flush=True)
