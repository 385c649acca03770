"""OpenCLIP 3: the training loop receives the loss; batches are tuples; samples are decoded
before renaming."""

import functools
import inspect
from collections.abc import Callable
from types import SimpleNamespace

from .. import hooks
from ..data.shard_order import at_least_a_batch
from . import trained

HAS_TASKS = False
PASSED_ON = {}  # names of OpenCLIP's data module that must not change the plugins' tokens


def with_plugins_loss(create):
    """Returns an OpenCLIP `create_loss` whose loss the plugins replace or wrap."""

    def create_loss(*args, **kwargs):
        call = arguments(create, args, kwargs)
        own = functools.partial(create, *args, **kwargs)
        # OpenCLIP's main does not pass the model
        return plugins_loss(call["args"], call.get("model", trained.model), own)

    return create_loss


def plugins_loss(args, model, create_own: Callable[[], object]):
    """Returns the loss that the plugins make; the last of them makes OpenCLIP's own."""

    class Own:
        @staticmethod
        @hooks.hookimpl(trylast=True)
        def open_clip_create_loss():
            return create_own()

    manager = hooks.plugin_manager()
    manager.register(Own)
    try:
        loss = manager.hook.open_clip_create_loss(args=args, model=model)
    finally:
        manager.unregister(Own)
    return create_own() if loss is None else loss


def arguments(function, args, kwargs) -> dict:
    """Returns the arguments of a call by the names that the function gives them, in any order."""
    return inspect.signature(function).bind(*args, **kwargs).arguments


def trained_epoch(call: dict) -> tuple[object, int]:
    """Returns the model and the epoch, given the arguments of `train_one_epoch`."""
    return call["model"], call["epoch"]


def with_plugins_groups(create):
    """Returns a function that creates OpenCLIP's optimizer, which the plugins then change."""

    def create_optimizer(*args, **kwargs):
        optimizer = create(*args, **kwargs)
        hooks.plugin_manager().hook.open_clip_optimizer_created(
            args=trained.args, model=trained.model, optimizer=optimizer
        )
        return optimizer

    return create_optimizer


def with_lr_scale(_):
    """Returns the `assign_learning_rate` of OpenCLIP 4, which multiplies the learning rate of a
    group by its `lr_scale`."""

    def assign_learning_rate(optimizer, new_lr):
        for group in optimizer.param_groups:
            group["lr"] = new_lr * group.get("lr_scale", 1.0)

    return assign_learning_rate


# Names to replace, besides those that both generations have, and what makes the replacement.
WRAPPERS = {
    "open_clip_train.main.create_loss": with_plugins_loss,
    "open_clip_train.main.optim": lambda optim: SimpleNamespace(
        AdamW=with_plugins_groups(optim.AdamW)
    ),
    "timm.optim.create_optimizer_v2": with_plugins_groups,
    "open_clip_train.scheduler.assign_learning_rate": with_lr_scale,
}


class WebDataset:
    """The webdataset package with the plugins' order of samples, and their tokens as the text,
    made on renaming.

    A pass that fills no batch ends the run.
    """

    def __init__(self, args, order, caption_tokens):
        import webdataset

        self.package = webdataset
        self.order = order
        self.caption_tokens = caption_tokens

    def __getattr__(self, name):
        return getattr(self.package, name)

    def shuffle(self, **options):
        return self.package.shuffle(**options) if self.order is None else self.order[1]

    def rename(self, **names):
        if self.caption_tokens is None:
            return self.package.rename(**names)
        rename = self.package.rename(**names | {"text": "txt"})
        return lambda samples: rename(self._with_tokens(samples))

    def batched(self, batch_size, partial, **options):
        batched = self.package.batched(batch_size, partial=partial, **options)
        if partial:  # of validation data
            return batched
        return lambda samples: batched(at_least_a_batch(samples, batch_size, "--train-data"))

    def with_caption(self, sample: dict) -> dict | None:
        """Returns the sample with OpenCLIP's caption as `txt`; None if OpenCLIP skips it."""
        return sample

    def _with_tokens(self, samples):
        num_kept = 0
        for sample in filter(None, map(self.with_caption, samples)):
            tokens = self.caption_tokens(sample)
            if tokens is not None:
                num_kept += 1
                yield {**sample, "txt": tokens}
        if hasattr(self.caption_tokens, "end_pass"):
            self.caption_tokens.end_pass(num_kept)


def shuffle_sizes() -> tuple[int, int]:
    """Returns size and initial size of OpenCLIP's shuffle buffer of samples."""
    import open_clip_train.data as data

    return data._SAMPLE_SHUFFLE_SIZE, data._SAMPLE_SHUFFLE_INITIAL
