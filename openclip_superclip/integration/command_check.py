"""Whether OpenCLIP and the plugins take a command, told without data and without loading anything."""

import argparse
import contextlib
import importlib
import io
import sys
import types

from .. import hooks
from ..errors import InputError
from . import unpatched_openclip as unpatched


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
    before, params.argparse = params.argparse, types.SimpleNamespace(ArgumentParser=_Parser)
    try:
        params.parse_args([])
    except _Parsed as parsed:
        return parsed.parser
    finally:
        params.argparse = before
