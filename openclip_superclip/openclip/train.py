"""`superclip train`, and a check of its command line without data or models."""

import argparse
import contextlib
import importlib
import io
import logging
import os
import shutil
import sys
import tempfile
import traceback
import types
from pathlib import Path

from .. import hooks
from ..errors import InputError, one_line, reason
from ..rules import check
from . import unpatched
from .checks import HAS_DATA
from .horovod import join_ranks


def register_plugin(plugin: object) -> None:
    """Registers a plugin in this process, in addition to the installed ones."""
    if unpatched.is_patched():
        asked = importlib.import_module("open_clip.hooks")
    else:
        asked = hooks
        sys.modules.setdefault("open_clip.hooks", hooks)  # where plugins import `hookimpl` from
    with contextlib.suppress(RuntimeError):  # a plugin cannot be loaded; training reports it
        asked.plugin_manager().register(plugin)


def train(argv: list[str]) -> int:
    """Trains like `python -m open_clip_train.main` and returns the exit code, 1 if OpenCLIP fails."""
    if argv[:1] == ["--"]:  # torchrun needs it so as not to parse flags such as --logs, and passes it on
        argv = argv[1:]
    result = -1
    try:
        result = _train(argv)
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
    except (AssertionError, OSError, RuntimeError, ValueError) as error:
        line = _explained(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
    finally:
        if result is not None:  # OpenCLIP returns -1 on errors
            remove_unstarted_run()
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.")]:
            logging.getLogger(name).setLevel(logging.WARNING)  # otherwise torch.compile prints statistics at exit
    return 0 if result is None else 1


def _explained(error: Exception) -> str | None:
    """Returns a one-line message for an error of a run in this process, or None to print the traceback."""
    if not _begun or not _begun[0].is_dir():  # another rank may have removed it
        return None
    if shutil.disk_usage(_begun[0]).free < FULL_DISK:
        return f"the disk of {_begun[0]} is full ({reason(error)}): free space, and continue with --resume latest"
    if _has_started(_begun[0]) or isinstance(error, RuntimeError) or not str(error):
        return None
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"OpenCLIP ended before the first step: {reason(error)} ({place.filename}, line {place.lineno})"


def _train(argv: list[str]):
    patched = unpatched.is_patched()
    unpatched.check_release()
    if not patched:
        sys.modules.setdefault("open_clip.hooks", hooks)  # where plugins import `hookimpl` from
    try:
        hooks.plugin_manager()
    except RuntimeError as error:  # a plugin cannot be loaded; the message names it
        raise InputError(str(error)) from error
    if patched:
        from open_clip_train.main import main

        unpatched.tell_mistakes_in_one_line()
        if "--horovod" in argv:
            join_ranks()
        return main(argv)
    args = unpatched.parse_args(argv)
    check([HAS_DATA], args)
    from open_clip_train.main import main

    if getattr(args, "horovod", False):
        join_ranks()
    unpatched.install(args)
    if os.environ.get("HOROVOD_RANK", os.environ.get("RANK", "0")) == "0":
        print("superclip: this OpenCLIP is not patched; in this process the plugins' hooks replace", flush=True)
        print(*(f"  {name}: {what}" for name, what in unpatched.replaced().items()), sep="\n", flush=True)
        if warning := unpatched.untested():
            print(f"superclip: {warning}", file=sys.stderr, flush=True)
    return main(argv)


FULL_DISK = 4 << 20  # free bytes
_begun: list[Path] = []  # the run's folder, if it was empty before


def note_begin(logs: str, name: str | None) -> None:
    """Creates the folder of a run that is about to start; InputError if it is not writable.

    Args:
        name: None if OpenCLIP names the run by the time.
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
        if not _has_started(folder):
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # it contains other runs
                folder.parent.rmdir()
    _begun.clear()


def _has_started(folder: Path) -> bool:
    log = folder / "out.log"
    return (log.is_file() and "Train Epoch" in log.read_text()) or any(folder.glob("checkpoints/*"))


class _Parsed(Exception):
    """Passes OpenCLIP's complete parser out of its function."""

    def __init__(self, parser: argparse.ArgumentParser):
        self.parser = parser


class _Parser(argparse.ArgumentParser):
    def parse_args(self, argv):
        raise _Parsed(self)


def check_command(argv: list[str]) -> argparse.Namespace:
    """Returns the parsed arguments of `superclip train`; InputError if OpenCLIP or a plugin rejects them.

    The training data is not checked.
    """
    if not unpatched.is_patched():
        sys.modules.setdefault("open_clip.hooks", hooks)  # where plugins import `hookimpl` from
    hook = hooks.plugin_manager().hook
    parser = _openclip_parser()
    if "--superclip" not in parser._option_string_actions:  # a patched OpenCLIP has added them itself
        hook.open_clip_add_options(parser=parser)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            args = argparse.ArgumentParser.parse_args(parser, argv)
    except SystemExit:
        raise InputError(f"flags: OpenCLIP refuses them: {said.getvalue().rpartition('error: ')[2].strip()}") from None
    except (SyntaxError, ValueError) as error:  # for NAME=VALUE, such as in --aug-cfg, which OpenCLIP parses as Python
        raise InputError(f"flags: OpenCLIP cannot read a NAME=VALUE among them ({error})") from None
    args.only_options = True
    try:
        hook.open_clip_check_options(args=args)
    except SystemExit as error:
        raise InputError(f"flags: {str(error).removeprefix('error: ')}") from None
    return args


def _openclip_parser() -> argparse.ArgumentParser:
    params = importlib.import_module("open_clip_train.params")
    before, params.argparse = params.argparse, types.SimpleNamespace(**{**vars(argparse), "ArgumentParser": _Parser})
    try:
        params.parse_args([])
    except _Parsed as parsed:
        return parsed.parser
    finally:
        params.argparse = before
