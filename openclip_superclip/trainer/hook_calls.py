"""Makes an unpatched OpenCLIP call the hooks by replacing a few of its functions.

The calls are the same as in the patch; a patched OpenCLIP is not changed. Code for only one
generation of OpenCLIP is in openclip_3.py and openclip_4.py.
"""

import argparse
import contextlib
import importlib
import sys
import types

from .. import hooks
from ..environment import FACTORY_LOCK, replaced
from ..errors import InputError, explained, reason
from . import current, package_folder, trained
from .openclip_3 import arguments

PATCHED_FILES = (
    "open_clip/factory.py",
    "open_clip_train/data.py",
    "open_clip_train/main.py",
    "open_clip_train/params.py",
)
MODEL_CLASSES = ("CLIP", "CustomTextCLIP", "CoCa")
REPLACED = (  # in both generations, besides the WRAPPERS of each
    "open_clip_train.params.argparse",
    "open_clip_train.main.parse_args",
    "open_clip_train.main.create_model_and_transforms",
    *(f"open_clip.factory.{name}" for name in MODEL_CLASSES),
    "open_clip_train.data.get_dataset_fn",
    "open_clip_train.data.wds",
    "open_clip_train.data.SharedEpoch",
    "open_clip_train.data.CsvDataset",
    "open_clip_train.data.detshuffle2",
    "torch.nn.parallel.DistributedDataParallel",
    "open_clip_train.main.train_one_epoch",
)
_ORIGINALS = {}  # OpenCLIP's own, by dotted path, so that nothing is replaced twice


def is_patched() -> bool:
    """Returns, without importing it, whether the installed OpenCLIP calls the hooks; InputError
    if only a part does."""
    folder = package_folder()
    file = folder / "hooks.py"
    if file.is_file() and "plugin_manager" in file.read_text():
        return True
    for path in PATCHED_FILES:
        file = folder.parent / path
        if file.exists() and "plugin_manager" in file.read_text():
            raise InputError(
                f"{file} is patched, but open_clip/hooks.py is missing: run superclip patch apply"
            )
    return False


def hooks_module() -> types.ModuleType:
    """Returns the hooks that OpenCLIP calls: its own if it is patched; otherwise ours, which
    plugins then import."""
    if is_patched():
        return importlib.import_module("open_clip.hooks")
    return sys.modules.setdefault("open_clip.hooks", hooks)


def parse_args(argv: list[str], *, only_options: bool = False) -> argparse.Namespace:
    """Returns OpenCLIP's training command line, parsed with the plugins' options and checked by
    them.

    Raises InputError if OpenCLIP cannot parse it, and what the plugins raise. With `only_options`,
    models and data are not checked.
    """
    from open_clip_train import params

    hook = hooks_module().plugin_manager().hook
    patched = is_patched()  # such an OpenCLIP calls the hooks itself

    class Parser(argparse.ArgumentParser):
        def __init__(self):
            super().__init__(prog="superclip train", allow_abbrev=not only_options)

        def parse_args(self, argv):
            if not patched:
                hook.open_clip_add_options(parser=self)
            try:
                args = super().parse_args(argv)
            except InputError:
                raise
            except (SyntaxError, ValueError) as error:
                self.error(
                    "--aug-cfg and --opt-kwargs expect NAME=VALUE, such as scale=(0.9,1.0) "
                    f"({reason(error)})"
                )
            if only_options:
                args.only_options = True
            if not patched:
                hook.open_clip_check_options(args=args)
            return args

        def error(self, message):  # without OpenCLIP's long usage
            raise InputError(explained(message, self))

    with replaced(
        params, argparse=types.SimpleNamespace(**vars(argparse) | {"ArgumentParser": Parser})
    ):
        return params.parse_args(argv)


def install(args: argparse.Namespace) -> None:
    """Makes OpenCLIP's `main` train with `args` and the plugins' model arguments, model class
    and loss."""
    trained.args = args
    trained.model = None

    def with_model_kwargs(create):
        def create_model_and_transforms(*model_args, **kwargs):
            if trained.model is not None:  # this one is the teacher of a distillation
                return create(*model_args, **kwargs)
            created = create(*model_args, **kwargs | hooks.model_kwargs(args))
            trained.model = created[0]
            hook = hooks.plugin_manager().hook
            hook.open_clip_model_created(args=args, model=created[0])
            return created

        return create_model_and_transforms

    from .data import with_plugins_data

    _replace("open_clip_train.data.get_dataset_fn", with_plugins_data)
    _replace("open_clip_train.main.parse_args", lambda _: lambda argv: args)
    _replace("open_clip_train.main.create_model_and_transforms", with_model_kwargs)
    _replace("open_clip_train.main.train_one_epoch", with_epoch_end)
    for path, wrapper in current().WRAPPERS.items():
        _replace(path, wrapper)
    _replace("torch.nn.parallel.DistributedDataParallel", _with_cpu_ranks)
    _replace_model_classes()


def uninstall() -> None:
    """Gives OpenCLIP its own functions back."""
    for path, original in _ORIGINALS.items():
        module_name, _, name = path.rpartition(".")
        setattr(sys.modules[module_name], name, original)
    trained.args = None
    trained.model = None


@contextlib.contextmanager
def plugins_model_class():
    """A context in which OpenCLIP's factory calls the plugins for the model class.

    One thread at a time."""
    from open_clip import factory

    with (
        FACTORY_LOCK,
        replaced(factory, **{name: getattr(factory, name) for name in MODEL_CLASSES}),
    ):
        if not is_patched():
            _replace_model_classes()
        yield


def _replace_model_classes() -> None:
    for name in MODEL_CLASSES:
        _replace(f"open_clip.factory.{name}", _of_selected_class)


def _of_selected_class(model_class: type):
    """Returns what replaces a model class in OpenCLIP's factory: a function that creates a model of
    the class that the plugins select."""

    def create(*args, **model_cfg):
        hook = hooks.plugin_manager().hook
        selected = hook.open_clip_select_model_class(model_class=model_class, model_cfg=model_cfg)
        return (selected or model_class)(*args, **model_cfg)

    create.__name__ = model_class.__name__  # which the factory logs
    return create


def with_epoch_end(train):
    """Returns an OpenCLIP `train_one_epoch` that calls the plugins after an epoch's last step."""

    def train_one_epoch(*args, **kwargs):
        train(*args, **kwargs)
        call = arguments(train, args, kwargs)
        model, epoch = current().trained_epoch(call)
        hook = hooks.plugin_manager().hook
        hook.open_clip_epoch_end(args=call["args"], model=model, epoch=epoch)

    return train_one_epoch


def _with_cpu_ranks(ddp: type) -> type:
    class DistributedDataParallel(ddp):
        def __init__(self, module, device_ids=None, **kwargs):
            # torch accepts no device_ids there
            on_cpu = next(module.parameters()).device.type == "cpu"
            super().__init__(module, device_ids=None if on_cpu else device_ids, **kwargs)

    return DistributedDataParallel


def _replace(path: str, make) -> None:
    """Replaces the object at the dotted `path` by `make(object)`."""
    module_name, _, name = path.rpartition(".")
    module = importlib.import_module(module_name)
    setattr(module, name, make(_ORIGINALS.setdefault(path, getattr(module, name))))
