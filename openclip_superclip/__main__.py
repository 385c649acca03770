"""The `superclip` command, also `python -m openclip_superclip`."""

import contextlib
import difflib
import importlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator

from . import __version__
from .errors import InputError, one_line, printable, reason, to_stderr
from .files import is_full, why_full
from .removed import COMMANDS as REMOVED
from .runs.signals import Stopped

GROUPS = {
    "try": {
        "demo": "train CLIP and SuperCLIP on real drawings here, and compare them",
    },
    "train": {
        "train": "train with OpenCLIP, with or without --superclip",
        "export": "convert a checkpoint to plain CLIP, for OpenCLIP or transformers",
        "average": "average checkpoints, or interpolate between two",
    },
    "your data": {
        "check": "read all shards, or all images of a table, and list what cannot be read",
        "frequencies": "count the captions that contain each token, for --superclip-idf FILE",
        "study": "compare methods over paired seeds, here or on SLURM",
    },
    "cluster": {
        "plan": "list the recipes; compute a recipe's steps and cost",
        "run": "train a recipe on this machine, into a folder that records the run",
        "submit": "train a recipe on SLURM",
        "status": "show the state of runs: progress, speed, expected end, SLURM jobs",
        "stop": "end a run after its next checkpoint, or at once",
    },
    "scores": {
        "evaluate": "evaluate checkpoints, and compare runs",
        "words": "show the words that the class head finds in images, and where",
    },
    "installation": {
        "patch": "patch OpenCLIP so that its own training command accepts these flags",
        "doctor": "print versions, devices, extras, disk and SLURM for an issue",
    },
}


class Terminated(KeyboardInterrupt):
    """SIGTERM ends the command, as Ctrl-C does."""


COMMANDS = {name: help for group in GROUPS.values() for name, help in group.items()}


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code; an error is printed in one line, and is 1. With
    SUPERCLIP_DEBUG=1 it is raised."""
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # buffered output, including argparse's help
    except BrokenPipeError:
        output = select.poll()
        output.register(sys.stdout, 0)
        if not any(event & select.POLLERR for _, event in output.poll(0)):
            raise
    except Exception as error:
        if os.environ.get("SUPERCLIP_DEBUG") == "1":
            raise
        to_stderr(f"error: {error_line(error)}")
        if not is_full(error):
            return 1
    # Otherwise Python would report the output once more at exit: a full disk, or a reader such as
    # `head` that is gone.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def error_line(error: Exception) -> str:
    """Returns what is printed about an error that ends a command."""
    if isinstance(error, InputError):
        return one_line(error)
    file = printable(str(getattr(error, "filename", None) or "the output"))
    if is_full(error):
        return f"{file} cannot be written ({why_full(error)})"
    if isinstance(error, OSError) and error.filename:
        return f"{file} cannot be used ({error.strerror})"
    kind = type(error).__name__
    text = f"{kind}: {reason(error).removeprefix(f'{kind}: ')}".removesuffix(f": {kind}")
    return printable(f"{text} (SUPERCLIP_DEBUG=1 prints the traceback)")


def _run(argv: list[str] | None) -> int:
    """Runs a command and returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: superclip COMMAND ...\n")
        for title, group in GROUPS.items():
            print(f"{title}:")
            for command, help in group.items():
                print(f"  {command:<{width}}  {help}")
        print("\nsuperclip COMMAND --help lists its options.")
        return 0
    if name == "--version":
        print(f"openclip-superclip {__version__}")
        return 0
    if name not in COMMANDS:
        to_stderr(f"error: {_unknown_command(name)}")
        return 2
    try:
        with _signals_raise():
            return _call(name, rest)
    except Stopped as stop:  # only of commands that resume
        to_stderr(f"superclip {name}: stopped by {stop}; the same command resumes")
        return stop.exit_code
    except KeyboardInterrupt as stop:
        signum = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        resumes = ""
        if name == "train":
            resumes = "; its --name with --resume latest continues it after its last checkpoint"
        to_stderr(f"superclip {name}: stopped by {signum.name}{resumes}")
        return 128 + signum


def _unknown_command(name: str) -> str:
    """Returns the error for a name that is no command: what replaces it, or a similar one."""
    if name in REMOVED:
        return f"superclip {name} was removed: {REMOVED[name]}"
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    if name.startswith("-"):
        near = [f"train {name}"]
    meant = f"did you mean superclip {near[0]}? " if near else ""
    return f"there is no command '{printable(name)}': {meant}superclip --help lists all"


def _call(name: str, argv: list[str]) -> int:
    """Runs the command of this name and returns its exit code."""
    if name == "train":
        from .trainer.train import explained_errors, train

        with explained_errors():
            return train(argv)
    return importlib.import_module(f".commands.{name}", __package__).main(argv)


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Makes SIGTERM raise Terminated in this process, but not in processes that it forks, which
    also ignore the SIGINT of a Ctrl-C: this process ends them.

    A rank that waits for others would not handle the signals: it keeps the default actions.
    """
    process = os.getpid()
    is_rank = os.environ.get("WORLD_SIZE", "1") != "1"

    def terminate(signum, _):
        if os.getpid() == process:
            # torch would raise for each of its workers that ends
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            raise Terminated
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)

    def interrupt(*_):
        if os.getpid() == process:
            raise KeyboardInterrupt

    if is_rank or threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {  # what it replaces, and by what
        signal.SIGTERM: (signal.SIG_DFL, terminate),
        signal.SIGINT: (signal.default_int_handler, interrupt),
    }
    for each, (before, handler) in handlers.items():
        if signal.getsignal(each) == before:  # else a caller handles it
            signal.signal(each, handler)
    try:
        yield
    finally:
        for each, (before, handler) in handlers.items():
            if signal.getsignal(each) is handler:
                signal.signal(each, before)


if __name__ == "__main__":
    sys.exit(main())
