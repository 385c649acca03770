"""`superclip train`, and a check of its command line without data or models."""

import argparse
import contextlib
import logging
import shutil
import sys
import tempfile
from pathlib import Path

from ..errors import InputError, check, one_line, reason
from . import current, replacing
from .checks import DATA
from .horovod import join_ranks
from .options import launched


def register_plugin(plugin: object) -> None:
    """Registers a plugin in this process, in addition to the installed ones."""
    with contextlib.suppress(RuntimeError):  # an installed plugin cannot be loaded; training reports it
        replacing.hooks_module().plugin_manager().register(plugin)


def train(argv: list[str]) -> int:
    """Trains like `python -m open_clip_train.main` and returns the exit code, 1 if OpenCLIP fails."""
    if argv[:1] == ["--"]:  # torchrun needs it so as not to parse flags such as --logs, and passes it on
        argv = argv[1:]
    result = -1
    try:
        result = _train(argv)
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
    finally:
        if result is not None:  # OpenCLIP returns -1 on errors
            remove_unstarted_run()
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.")]:
            logging.getLogger(name).setLevel(logging.WARNING)  # otherwise torch.compile prints statistics at exit
    return 0 if result is None else 1


def _train(argv: list[str]):
    try:
        replacing.hooks_module().plugin_manager()
    except RuntimeError as error:  # a plugin cannot be loaded; the message names it
        raise InputError(str(error)) from error
    args = None if replacing.is_patched() else replacing.parse_args(argv)
    if args is not None:
        check(DATA, args)
    from open_clip_train.main import main

    if "--horovod" in argv:
        join_ranks()
    if args is not None:
        replacing.install(args)
        if launched()[0] == 0:
            passed_on = (f"open_clip_train.data.{name}" for name in current().PASSED_ON)
            names = ", ".join([*replacing.REPLACED, *current().WRAPPERS, *passed_on])
            print(f"superclip: this OpenCLIP is not patched; in this process the plugins replace {names}", flush=True)
    return main(argv)


_begun: list[Path] = []  # the run's folder, if it was empty before


def note_begin(logs: str, name: str | None) -> None:
    """Creates the folder of a run that is about to start; InputError if it is not writable.

    OpenCLIP names the run by the time if `name` is None.
    """
    folder = Path(logs, name or "")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"--logs: cannot write to {folder}: {error.strerror}") from error
    _begun[:] = [folder] if name is not None and not any(folder.iterdir()) else []


def remove_unstarted_run() -> None:
    """Removes the folder of a run without a training step, because OpenCLIP refuses a name that has a log."""
    for folder in _begun:
        logging.disable(logging.CRITICAL)  # torch would log compilation statistics at exit
        logs = folder.glob("out*")  # out.log, or out-RANK with --log-local
        has_started = any("Train Epoch" in log.read_text() for log in logs) or any(folder.glob("checkpoints/*"))
        if not has_started:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # it contains other runs
                folder.parent.rmdir()
    _begun.clear()


def check_command(argv: list[str]) -> argparse.Namespace:
    """Returns the parsed arguments of `superclip train`, models and data unchecked; InputError if they are refused."""
    try:
        return replacing.parse_args(argv, only_options=True)
    except SystemExit as error:
        raise InputError(f"flags: {str(error).removeprefix('error: ')}") from None
    except (SyntaxError, ValueError) as error:  # including OpenCLIP's own, such as for a NAME=VALUE
        raise InputError(f"flags: OpenCLIP refuses them: {reason(error)}") from None
