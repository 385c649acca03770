"""Makes an unpatched OpenCLIP call the hooks by replacing a few of its functions.

The calls are the same as in the patch; a patched OpenCLIP is not changed. Code for only one generation of OpenCLIP is
in v3.py and v4.py.
"""

import argparse
import contextlib
import functools
import importlib.util
import itertools
import multiprocessing
import threading
import types
from pathlib import Path

from .. import hooks
from ..errors import InputError
from . import current
from .patching import INSTALL, find_installation

PATCHED_IN_TRAINING = ("data", "main", "params")  # and open_clip/factory.py
MODEL_CLASSES = ("CLIP", "CustomTextCLIP", "CoCa")
_FACTORY = threading.RLock()  # held while the factory's names are replaced
_ORIGINALS = {}  # OpenCLIP's own, by dotted path, so that nothing is replaced twice

# Names of all generations, and their replacements.
REPLACED = {
    "open_clip_train.params.argparse": "a parser that asks the plugins for options and checks",
    "open_clip_train.main.parse_args": "the command line as parsed before anything was loaded",
    "open_clip_train.main.create_model_and_transforms": "the same, with the plugins' model arguments",
    **{f"open_clip.factory.{name}": "the plugins' model class, if one has an answer" for name in MODEL_CLASSES},
    "open_clip_train.data.get_dataset_fn": "the same, but it asks the plugins for order and tokens of training data",
    **{
        f"open_clip_train.data.{name}": "the same, with the plugins' order or tokens, while training data is made"
        for name in ("wds", "SharedEpoch", "CsvDataset", "detshuffle2")
    },
    "torch.nn.parallel.DistributedDataParallel": "the same, with CPU ranks",
}


def replaced() -> dict[str, str]:
    """Returns all replaced names of the installed OpenCLIP and their replacements."""
    return REPLACED | current().REPLACED


def is_patched() -> bool:
    """Returns, without importing it, whether the installed OpenCLIP calls the hooks; InputError if only a part does."""
    package = importlib.util.find_spec("open_clip")
    if package is None:
        raise InputError(f"OpenCLIP is not installed: {INSTALL}")
    if importlib.machinery.PathFinder.find_spec("hooks", package.submodule_search_locations) is not None:
        return True
    root = Path(package.origin).parent.parent
    for file in (root / "open_clip/factory.py", *(root / f"open_clip_train/{name}.py" for name in PATCHED_IN_TRAINING)):
        if file.exists() and "open_clip_" in file.read_text() and "plugin_manager" in file.read_text():
            raise InputError(
                f"{file} is patched, but open_clip/hooks.py is not there: superclip patch apply completes it"
            )
    return False


def check_release() -> None:
    """Raises InputError, without importing it, for an OpenCLIP older than 3.0."""
    version = find_installation().version
    if int(version.partition(".")[0]) < 3:
        raise InputError(f"open_clip_torch {version} is too old: expected 3.0 or later, {INSTALL}")


def untested() -> str | None:
    """Returns a warning if this OpenCLIP was not tested with this package, or None."""
    from . import v3, v4

    version, tested = find_installation().version, (*v3.TESTED, *v4.TESTED)
    if version in tested:
        return None
    return (
        f"open_clip_torch {version} is not among the versions that were tested ({', '.join(tested)}), but it has every "
        "name that is replaced"
    )


class _Parser(argparse.ArgumentParser):
    def __init__(self):
        super().__init__(prog="superclip train")

    def error(self, message):  # without OpenCLIP's long usage
        self.exit(2, f"error: {message} (superclip train --help lists every flag)\n")


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Returns OpenCLIP's training command line, parsed with the plugins' options and checked by them."""

    class Parser(_Parser):
        def parse_args(self, argv):
            hook = hooks.plugin_manager().hook
            hook.open_clip_add_options(parser=self)
            args = super().parse_args(argv)
            hook.open_clip_check_options(args=args)
            return args

    return _with_parser(Parser).parse_args(argv)


def tell_mistakes_in_one_line() -> None:
    """Makes a patched OpenCLIP report command-line errors without the usage."""
    _with_parser(_Parser)


def _with_parser(parser_class: type) -> types.ModuleType:
    def with_parser(argparse):
        return types.SimpleNamespace(**{**vars(argparse), "ArgumentParser": parser_class})

    return _replace("open_clip_train.params.argparse", with_parser)


def install(args: argparse.Namespace) -> None:
    """Makes OpenCLIP's `main` train with `args` and the plugins' model arguments, model class and loss."""
    student = iter([args])  # the first model; a second one is the teacher of a distillation

    def with_model_kwargs(create):
        @functools.wraps(create)
        def create_model_and_transforms(*model_args, **kwargs):
            for args in itertools.islice(student, 1):
                kwargs.update(hooks.model_kwargs(args))
            return create(*model_args, **kwargs)

        return create_model_and_transforms

    from .data import with_plugins_data

    _check_names()
    _replace("open_clip_train.data.get_dataset_fn", with_plugins_data)
    _replace("open_clip_train.main.parse_args", lambda _: lambda argv: args)
    _replace("open_clip_train.main.create_model_and_transforms", with_model_kwargs)
    for path, wrapper in current().WRAPPERS.items():
        _replace(path, wrapper)
    _replace("torch.nn.parallel.DistributedDataParallel", _with_cpu_ranks)
    for name in MODEL_CLASSES:
        _replace(f"open_clip.factory.{name}", _ModelSelector)


@contextlib.contextmanager
def plugins_model_class():
    """A context in which OpenCLIP's factory calls the plugins for the model class. One thread at a time."""
    factory = importlib.import_module("open_clip.factory")
    with _FACTORY:
        before = {name: getattr(factory, name, None) for name in MODEL_CLASSES}
        try:
            if not is_patched():
                for name in MODEL_CLASSES:
                    _replace(f"open_clip.factory.{name}", _ModelSelector)
            yield
        finally:
            for name, value in before.items():
                setattr(factory, name, value)


class _ModelSelector:
    """Replaces a model class in OpenCLIP's factory; a call creates a model of the class that the plugins select."""

    def __init__(self, model_class: type):
        self.model_class = model_class
        self.__name__ = model_class.__name__  # which the factory logs

    def __call__(self, *args, **model_cfg):
        hook = hooks.plugin_manager().hook
        selected = hook.open_clip_select_model_class(model_class=self.model_class, model_cfg=model_cfg)
        return (selected or self.model_class)(*args, **model_cfg)


def _with_cpu_ranks(ddp: type) -> type:
    class DistributedDataParallel(ddp):
        def __init__(self, module, device_ids=None, **kwargs):
            on_cpu = next(module.parameters()).device.type == "cpu"  # torch accepts no device_ids there
            super().__init__(module, device_ids=None if on_cpu else device_ids, **kwargs)

    return DistributedDataParallel


def _check_names() -> None:
    """Raises InputError, with all missing names, if OpenCLIP lacks a name to replace."""
    missing = []
    for path in replaced():
        module, _, name = path.rpartition(".")
        if not hasattr(importlib.import_module(module), name):
            missing.append(path)
    if missing:
        raise InputError(
            f"open_clip_torch {find_installation().version} has no {', '.join(missing)}, which superclip train "
            f"replaces: install a version that was tested, {INSTALL}"
        )


def _replace(path: str, make) -> types.ModuleType:
    """Replaces the object at the dotted `path` by `make(object)` and returns its module."""
    module_name, _, name = path.rpartition(".")
    module = importlib.import_module(module_name)
    setattr(module, name, make(_ORIGINALS.setdefault(path, getattr(module, name))))
    return module


def fork_workers(workers: int) -> None:
    """Makes WebDataset workers start by fork, because OpenCLIP's pipeline cannot be pickled.

    Raises InputError if another start method is set, or if the machine has no fork.
    """
    if workers < 1:
        return
    method = multiprocessing.get_start_method(allow_none=True)
    if method is None and "fork" in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("fork")
    elif method != "fork":
        raise InputError(
            f"--workers is {workers}, and processes of this Python start by {method or 'spawn'}, to which OpenCLIP's "
            "WebDataset cannot be sent: give --workers 0, or call multiprocessing.set_start_method('fork')"
        )
