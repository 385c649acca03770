"""Whether OpenCLIP and the plugins take a command, told without data and without loading anything."""

import argparse
import contextlib
import importlib
import io
import logging
import os
import shutil
import sys
import types
from pathlib import Path

from .. import hooks
from ..errors import InputError, one_line
from . import unpatched
from .checks import check_has_data
from .horovod import join_ranks


def register_plugin(plugin: object) -> None:
    """Adds a plugin of this process's to those that are installed."""
    if unpatched.is_patched():
        asked = importlib.import_module("open_clip.hooks")
    else:
        asked = hooks
        sys.modules.setdefault("open_clip.hooks", hooks)  # where plugins import `hookimpl` from
    with contextlib.suppress(RuntimeError):  # one that cannot be loaded, of which training tells
        asked.plugin_manager().register(plugin)


def train(argv: list[str]) -> int:
    """Trains as `python -m open_clip_train.main` would and returns its exit code, 1 where OpenCLIP gives up."""
    if argv[:1] == ["--"]:  # torchrun needs it to leave flags such as --logs alone, and passes it on
        argv = argv[1:]
    try:
        result = _train(argv)
    except InputError as error:
        take_back()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    finally:  # OpenCLIP has every logger tell everything, and torch.compile's print statistics when Python ends
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.")]:
            logging.getLogger(name).setLevel(logging.WARNING)
    return 0 if result is None else 1  # OpenCLIP returns -1 where it refuses, and would exit with 0


def _train(argv: list[str]):
    patched = unpatched.is_patched()
    unpatched.check_release()
    if not patched:
        sys.modules.setdefault("open_clip.hooks", hooks)  # where plugins import `hookimpl` from
    try:
        hooks.plugin_manager()
    except RuntimeError as error:  # a plugin that cannot be loaded, named
        raise InputError(str(error)) from error
    if patched:
        from open_clip_train.main import main

        unpatched.tell_mistakes_in_one_line()
        if "--horovod" in argv:
            join_ranks()
        return main(argv)
    args = unpatched.parse_args(argv)
    check_has_data(args)
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


_begun: list[Path] = []  # the run's folder, where it was not there before


def note_begin(folder: str) -> None:
    """Notes that a run is about to begin in `folder`."""
    _begun[:] = [] if Path(folder).exists() else [Path(folder)]


def take_back() -> None:
    """Removes the folder of a run that has not trained a step, and ends the logging.

    OpenCLIP refuses a name that has a log; and torch would log, as it ends, what it had compiled.
    """
    logging.disable(logging.CRITICAL)
    for folder in _begun:
        log = folder / "out.log"
        if log.is_file() and "Train Epoch" not in log.read_text() and not any(folder.glob("checkpoints/*")):
            shutil.rmtree(folder, ignore_errors=True)
    _begun.clear()


class _Parsed(Exception):
    """Carries the parser that OpenCLIP has filled out of its function."""

    def __init__(self, parser: argparse.ArgumentParser):
        self.parser = parser


class _Parser(argparse.ArgumentParser):
    def parse_args(self, argv):
        raise _Parsed(self)


def check_command(argv: list[str]) -> argparse.Namespace:
    """Returns the arguments of `superclip train` as parsed; InputError where OpenCLIP or a plugin refuses them.

    What only the training data can tell is left out.
    """
    if not unpatched.is_patched():
        sys.modules.setdefault("open_clip.hooks", hooks)  # where plugins import `hookimpl` from
    hook = hooks.plugin_manager().hook
    parser = _openclip_parser()
    if "--superclip" not in parser._option_string_actions:  # a patched OpenCLIP has asked for them itself
        hook.open_clip_add_options(parser=parser)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            args = argparse.ArgumentParser.parse_args(parser, argv)
    except SystemExit:
        raise InputError(f"flags: OpenCLIP refuses them: {said.getvalue().rpartition('error: ')[2].strip()}") from None
    except (SyntaxError, ValueError) as error:  # of NAME=VALUE, such as aug-cfg's, which OpenCLIP reads as Python
        raise InputError(f"flags: OpenCLIP cannot read a NAME=VALUE among them ({error})") from None
    if args.distill_model is not None and args.accum_freq > 1:
        raise InputError(f"flags: OpenCLIP cannot distil with --accum-freq, here {args.accum_freq}: take more GPUs")
    if args.lr_scheduler == "const-cooldown" and args.epochs_cooldown is None:
        raise InputError("schedule: const-cooldown needs epochs-cooldown, a number of slices, among the flags")
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
