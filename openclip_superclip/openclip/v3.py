"""OpenCLIP 3: the training loop receives the loss; batches are tuples; samples are decoded before renaming."""

import functools
import inspect

from .. import hooks
from ..errors import InputError

TESTED = ("3.0.0", "3.1.0", "3.2.0", "3.3.0")
HAS_TASKS = False

# Names of this generation only, and their replacements.
REPLACED = {
    "open_clip_train.main.create_loss": "the plugins' loss, if one has an answer",
    "open_clip_train.main.train_one_epoch": "the same, and the plugins are called at the end of the epoch",
}

PASSED_ON = {}  # names of OpenCLIP's data module that must not change the plugins' tokens


def with_plugins_loss(create):
    """Returns an OpenCLIP `create_loss` that calls the plugins first."""

    @functools.wraps(create)
    def create_loss(args):
        loss = hooks.plugin_manager().hook.open_clip_create_loss(args=args)
        return create(args) if loss is None else loss

    return create_loss


def _epoch_of(given: dict) -> dict:
    """Returns the hook's arguments from those of `train_one_epoch`."""
    return {name: given[name] for name in ("args", "model", "epoch")}


def with_epoch_end(train, epoch_of=_epoch_of):
    """Returns an OpenCLIP `train_one_epoch` that calls the plugins after an epoch's last step."""
    signature = inspect.signature(train)

    @functools.wraps(train)
    def train_one_epoch(*train_args, **kwargs):
        train(*train_args, **kwargs)
        given = signature.bind(*train_args, **kwargs).arguments
        hooks.plugin_manager().hook.open_clip_epoch_end(**epoch_of(given))

    return train_one_epoch


WRAPPERS = {
    "open_clip_train.main.create_loss": with_plugins_loss,
    "open_clip_train.main.train_one_epoch": with_epoch_end,
}


def _at_least_a_batch(samples, batch_size: int):
    """Yields the samples of a pass; InputError for less than one batch, for which OpenCLIP would loop forever."""
    number = 0
    for number, sample in enumerate(samples, start=1):  # noqa: B007
        yield sample
    if number < batch_size:
        raise InputError(
            f"--train-data: of the shards that a worker reads {number:,} samples can be read, and --batch-size is "
            f"{batch_size:,}; expected a full batch or more: superclip plan --check finds broken shards"
        )


class WebDataset:
    """The webdataset package with the plugins' shuffle of samples and their tokens for text.

    Samples are tokenized when their members are renamed.
    """

    def __init__(self, args, order, caption_tokens):
        self.order, self.caption_tokens = order, caption_tokens

    def __getattr__(self, name):
        import webdataset

        return getattr(webdataset, name)

    def shuffle(self, **options):
        return self.__getattr__("shuffle")(**options) if self.order is None else self.order[1]

    def rename(self, **names):
        if self.caption_tokens is None:
            return self.__getattr__("rename")(**names)
        rename = self.__getattr__("rename")(**self.names(names))
        return lambda samples: rename(self._with_tokens(samples))

    def batched(self, batch_size, **options):
        batched = self.__getattr__("batched")(batch_size, **options)
        return lambda samples: batched(_at_least_a_batch(samples, batch_size))

    def names(self, names: dict[str, str]) -> dict[str, str]:
        """Returns the member names of a tokenized sample, from OpenCLIP's."""
        return names

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


def check_options(args, captions: str | None, slices: int | None) -> None:
    """Does nothing: this generation supports all of its options with our flags."""


def row_with_tokens(row: tuple, tokens) -> tuple:
    """Returns a row of OpenCLIP's table with other tokens."""
    return row[0], tokens


def shuffle_sizes() -> tuple[int, int]:
    """Returns size and initial size of OpenCLIP's shuffle buffer of samples."""
    import open_clip_train.data as data

    return data._SAMPLE_SHUFFLE_SIZE, data._SAMPLE_SHUFFLE_INITIAL
