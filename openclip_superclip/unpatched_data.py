"""The training data of an unpatched OpenCLIP, made to ask the plugins for the tokens of each sample."""

import contextlib
import functools

import open_clip_train.data
import pandas as pd
import webdataset
from open_clip_train.data import CsvDataset

from . import hooks


def with_caption_tokens(get_dataset_fn):
    """Returns OpenCLIP's `get_dataset_fn` whose functions ask for the plugins' tokens where the data is trained on."""

    @functools.wraps(get_dataset_fn)
    def get_plugins_dataset_fn(data_path, dataset_type):
        return functools.partial(_get_dataset, get_dataset_fn(data_path, dataset_type))

    return get_plugins_dataset_fn


def _get_dataset(get_dataset, args, preprocess, *, is_train, epoch=0, tokenizer=None):
    if is_train:
        shared_epoch = open_clip_train.data.SharedEpoch(epoch)
        caption_tokens = hooks.plugin_manager().hook.open_clip_caption_tokens(
            args=args, tokenizer=tokenizer, shared_epoch=shared_epoch
        )
        if caption_tokens is not None:
            with _exchanged(
                SharedEpoch=lambda epoch: shared_epoch,
                wds=_WebDataset(caption_tokens),
                CsvDataset=functools.partial(_Table, caption_tokens),
            ):
                data = get_dataset(args, preprocess, is_train=True, epoch=epoch, tokenizer=lambda tokens: [tokens])
            data.shared_epoch = shared_epoch  # a table has none of its own
            return data
    return get_dataset(args, preprocess, is_train=is_train, epoch=epoch, tokenizer=tokenizer)


class _WebDataset:
    """The webdataset package, but samples have tokens for text when their members get their final names."""

    def __init__(self, caption_tokens):
        self.caption_tokens = caption_tokens

    def __getattr__(self, name):
        return getattr(webdataset, name)

    def rename(self, **names):
        put_tokens, rename = webdataset.map(self._put_tokens), webdataset.rename(**names)
        return lambda samples: rename(put_tokens(samples))

    def _put_tokens(self, sample: dict) -> dict | None:
        tokens = self.caption_tokens(sample)
        return None if tokens is None else {**sample, "txt": tokens}


class _Table(CsvDataset):
    """OpenCLIP's table of pictures and captions, but each row's text is the plugins' tokens."""

    def __init__(self, caption_tokens, input_filename, *args, sep, tokenizer, **kwargs):
        super().__init__(input_filename, *args, sep=sep, tokenizer=lambda captions: captions, **kwargs)
        self.rows = pd.read_csv(input_filename, sep=sep)
        self.caption_tokens = caption_tokens

    def __getitem__(self, index):
        for row in range(index, index + len(self)):
            row %= len(self)
            tokens = self.caption_tokens(self.rows.iloc[row].to_dict())
            if tokens is not None:
                return super().__getitem__(row)[0], tokens
        raise ValueError("A plugin leaves out every row of the table.")


@contextlib.contextmanager
def _exchanged(**values):
    """Within it, OpenCLIP's data module holds these values."""
    before = {name: getattr(open_clip_train.data, name) for name in values}
    try:
        vars(open_clip_train.data).update(values)
        yield
    finally:
        vars(open_clip_train.data).update(before)
