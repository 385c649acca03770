"""The training data of an unpatched OpenCLIP, made to ask the plugins for its order and for each sample's tokens."""

import contextlib
import functools
import logging

import open_clip_train.data
import pandas as pd
import webdataset
from open_clip_train.data import CsvDataset

from .. import hooks


def with_plugins_data(get_dataset_fn):
    """Returns OpenCLIP's `get_dataset_fn` whose functions ask the plugins where the data is trained on."""

    @functools.wraps(get_dataset_fn)
    def get_plugins_dataset_fn(data_path, dataset_type):
        return functools.partial(_get_dataset, get_dataset_fn(data_path, dataset_type))

    return get_plugins_dataset_fn


def _get_dataset(get_dataset, args, preprocess, *, is_train, epoch=0, tokenizer=None):
    if not is_train:
        return get_dataset(args, preprocess, is_train=False, epoch=epoch, tokenizer=tokenizer)
    shared_epoch = open_clip_train.data.SharedEpoch(epoch)
    hook = hooks.plugin_manager().hook
    order = None
    if get_dataset is open_clip_train.data.get_wds_dataset and not args.dataset_resampled:
        order = hook.open_clip_data_order(args=args, shared_epoch=shared_epoch)
    caption_tokens = hook.open_clip_caption_tokens(args=args, tokenizer=tokenizer, shared_epoch=shared_epoch)
    if order is None and caption_tokens is None:
        return get_dataset(args, preprocess, is_train=True, epoch=epoch, tokenizer=tokenizer)
    instead = {"SharedEpoch": lambda epoch: shared_epoch, "wds": _WebDataset(order, caption_tokens)}
    if order is not None:
        instead["detshuffle2"] = lambda **_: order[0]
    if caption_tokens is not None:
        instead["CsvDataset"] = functools.partial(_Table, caption_tokens)
        tokenizer = lambda tokens: [tokens]  # noqa: E731  OpenCLIP takes the tokens of the first caption
    with _exchanged(**instead):
        data = get_dataset(args, preprocess, is_train=True, epoch=epoch, tokenizer=tokenizer)
    data.shared_epoch = shared_epoch  # a table has none of its own
    return data


class _WebDataset:
    """The webdataset package, but with the plugins' shuffle of samples, and with their tokens for text.

    The tokens come when a sample's members get their final names.
    """

    def __init__(self, order, caption_tokens):
        self.order, self.caption_tokens = order, caption_tokens

    def __getattr__(self, name):
        return getattr(webdataset, name)

    def shuffle(self, **options):
        return webdataset.shuffle(**options) if self.order is None else self.order[1]

    def rename(self, **names):
        rename = webdataset.rename(**names)
        if self.caption_tokens is None:
            return rename
        return lambda samples: rename(self._with_tokens(samples))

    def _with_tokens(self, samples):
        num_kept = 0
        for sample in samples:
            tokens = self.caption_tokens(sample)
            if tokens is not None:
                num_kept += 1
                yield {**sample, "txt": tokens}
        if hasattr(self.caption_tokens, "end_pass"):
            self.caption_tokens.end_pass(num_kept)


class _Table(CsvDataset):
    """OpenCLIP's table of pictures and captions, but each row's text is the plugins' tokens."""

    def __init__(self, caption_tokens, input_filename, *args, sep, tokenizer, **kwargs):
        super().__init__(input_filename, *args, sep=sep, tokenizer=list, **kwargs)  # a function that can be pickled
        table = pd.read_csv(input_filename, sep=sep)
        self.columns = {name: table[name].tolist() for name in table}
        self.caption_tokens = caption_tokens
        self.kept = range(len(table))
        if hasattr(caption_tokens, "keeps"):
            self.kept = [row for row in self.kept if caption_tokens.keeps(self._row(row))]
            logging.info(f"{len(table) - len(self.kept):,} of {len(table):,} rows are left out by a plugin")

    def _row(self, row: int) -> dict:
        return {name: values[row] for name, values in self.columns.items()}

    def __len__(self):
        return len(self.kept)

    def __getitem__(self, index):
        row = self.kept[index]
        return super().__getitem__(row)[0], self.caption_tokens(self._row(row))


@contextlib.contextmanager
def _exchanged(**values):
    """Within it, OpenCLIP's data module holds these values."""
    before = {name: getattr(open_clip_train.data, name) for name in values}
    try:
        vars(open_clip_train.data).update(values)
        yield
    finally:
        vars(open_clip_train.data).update(before)
