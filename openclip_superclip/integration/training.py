"""OpenCLIP's training, with the plugins' options: patched or not, in this process."""

import contextlib
import importlib
import os
import sys

from .. import hooks
from ..distributed.horovod_rendezvous import join_ranks
from ..errors import InputError, one_line
from . import unpatched_openclip
from .refused_run import take_back


def register_plugin(plugin: object) -> None:
    """Adds a plugin of this process's to those that are installed."""
    if unpatched_openclip.is_patched():
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
    return 0 if result is None else 1  # OpenCLIP returns -1 where it refuses, and would exit with 0


def _train(argv: list[str]):
    patched = unpatched_openclip.is_patched()
    unpatched_openclip.check_release()
    if not patched:
        sys.modules.setdefault("open_clip.hooks", hooks)  # where plugins import `hookimpl` from
    try:
        hooks.plugin_manager()
    except RuntimeError as error:  # a plugin that cannot be loaded, named
        raise InputError(str(error)) from error
    if patched:
        from open_clip_train.main import main

        unpatched_openclip.tell_mistakes_in_one_line()
        if "--horovod" in argv:
            join_ranks()
        return main(argv)
    args = unpatched_openclip.parse_args(argv)
    from open_clip_train.main import main

    if args.horovod:
        join_ranks()
    unpatched_openclip.install(args)
    if os.environ.get("HOROVOD_RANK", os.environ.get("RANK", "0")) == "0":
        print("superclip: this OpenCLIP is not patched; in this process the plugins' hooks replace", flush=True)
        print(*(f"  {name}: {what}" for name, what in unpatched_openclip.REPLACED.items()), sep="\n", flush=True)
    return main(argv)
