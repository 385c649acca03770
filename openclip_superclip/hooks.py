"""The hooks that an OpenCLIP plugin can implement, and the manager that finds the plugins.

A plugin is a module that a distribution registers in the entry-point group ``open_clip``. It
imports `hookimpl` from here and defines any of the functions below under their own names. Without a
plugin, the hooks return nothing, and OpenCLIP is unchanged.

OpenCLIP uses one result of a hook with `firstresult`. A plugin that replaces something returns it;
if two do, the one with the alphabetically later entry point is used. A plugin that adds something
is a wrapper, `hookimpl(wrapper=True)`: it gets the others' result, or None, and returns its own
around it. Wrappers work together and with a replacement.
"""

import functools
import importlib.metadata
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator

import pluggy

hookspec = pluggy.HookspecMarker("open_clip")
hookimpl = pluggy.HookimplMarker("open_clip")
Stage = Callable[[Iterator[dict]], Iterator[dict]]


@hookspec
def open_clip_add_options(parser: ArgumentParser) -> None:
    """Adds the plugin's flags to `parser`, OpenCLIP's argparse parser for training, before it
    parses."""


@hookspec
def open_clip_check_options(args: Namespace) -> None:
    """Refuses `args`, the parsed command line, by raising SystemExit.

    Nothing has been created or loaded yet."""


@hookspec
def open_clip_model_kwargs(args: Namespace) -> dict | None:
    """Returns additional keyword arguments (a dict) for the model that is trained, or None."""


@hookspec(firstresult=True)
def open_clip_select_model_class(model_class: type, model_cfg: dict) -> type | None:
    """Returns the class to build instead of `model_class`, or None to keep it.

    `model_cfg` is the model's configuration with the keyword arguments merged in: what the class is
    called with.
    """


@hookspec
def open_clip_model_created(args: Namespace, model: object) -> None:
    """Changes in place the model that is trained, after the weights that it starts from are loaded.

    OpenCLIP locks parts of the model, wraps it, makes the optimizer and loads the checkpoint of
    --resume later.
    """


@hookspec
def open_clip_optimizer_created(args: Namespace, model: object, optimizer: object) -> None:
    """Changes in place the optimizer of the training, such as its `param_groups`; `model` is the
    one that is trained, perhaps wrapped.

    OpenCLIP's schedules multiply the learning rate of a group by its `lr_scale`, if it has one.
    Horovod wraps the optimizer, and OpenCLIP loads the checkpoint of --resume, later.
    """


@hookspec(firstresult=True)
def open_clip_create_loss(args: Namespace, model: object) -> Callable | None:
    """Returns the training loss, or None for OpenCLIP's own; `model` is the one that is trained,
    perhaps wrapped.

    It is called with the model's outputs by name and `output_dict=True`, and returns a dict of
    losses to be summed. A wrapper that adds a loss removes its own outputs and passes the others to
    the loss that it wraps: the result of `yield`, which may be OpenCLIP's own loss, or OpenCLIP's
    `create_loss(args)` if that is None.
    """


@hookspec(firstresult=True)
def open_clip_caption_tokens(
    args: Namespace, tokenizer: Callable, shared_epoch: object
) -> Callable | None:
    """Returns a function that makes the tokens of a training sample, or None for OpenCLIP's
    `tokenizer(caption)[0]`.

    The data loader's workers call it with a dict, WebDataset's decoded members by extension or a
    row of the table. It returns token ids [L], or None to leave a sample of a shard out; an
    exception ends the training. It may have two methods: a table calls `keeps(row)` once for each
    of its rows, before training, and leaves out those that are False; a worker calls
    `end_pass(num_kept)` when its shards end. `shared_epoch.get_value()` is the current epoch, in
    the workers too. Validation data is not changed.
    """


@hookspec(firstresult=True)
def open_clip_data_order(args: Namespace, shared_epoch: object) -> tuple[Stage, Stage] | None:
    """Returns the two stages that order the training data of a WebDataset, or None for OpenCLIP's
    own shuffles.

    Each maps an iterator to another: the first one over all shards (dicts with a `url`), before
    ranks and workers divide them, the second one over the samples that a worker reads. A worker
    calls both when an epoch starts, and again if its shards end within one. OpenCLIP calls
    `shared_epoch.set_value` in the training process before each epoch. Not called with
    --dataset-resampled.
    """


@hookspec
def open_clip_epoch_end(args: Namespace, model: object, epoch: int) -> None:
    """Is called on every rank after an epoch's last step, before OpenCLIP evaluates and saves the
    checkpoint.

    `model` is the one that is trained, as OpenCLIP has wrapped it; `epoch` counts from 0.
    """


@functools.cache
def plugin_manager() -> pluggy.PluginManager:
    """Returns the pluggy manager with every installed plugin registered.

    Raises RuntimeError, in one line that names the plugin, if one cannot be imported or implements
    an unknown hook.
    """
    manager = pluggy.PluginManager("open_clip")
    manager.add_hookspecs(sys.modules[__name__])
    for name in sorted(
        {entry.name for entry in importlib.metadata.entry_points(group="open_clip")}
    ):
        try:
            manager.load_setuptools_entrypoints("open_clip", name)
            manager.check_pending()
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RuntimeError(f"open_clip plugin '{name}' failed to load: {reason}") from error
    return manager


def model_kwargs(args: Namespace) -> dict:
    """Returns the merged results of all plugins for `open_clip_model_kwargs`; ValueError if two
    give the same key."""
    merged = {}
    for kwargs in plugin_manager().hook.open_clip_model_kwargs(args=args):
        repeated = merged.keys() & kwargs.keys()
        if repeated:
            raise ValueError(
                f"two open_clip plugins set the model argument {', '.join(sorted(repeated))}"
            )
        merged.update(kwargs)
    return merged
