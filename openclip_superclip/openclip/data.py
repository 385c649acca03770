"""OpenCLIP's training data with the plugins' order and tokens, and a log of samples that cannot be read."""

import functools
import json
import logging
import os
import tarfile
import types
from collections.abc import Callable
from pathlib import Path

import open_clip_train.data
import pandas as pd
import webdataset.tariterators
from open_clip_train.data import CsvDataset

from .. import hooks
from ..data.tar_shards import StrictTarInfo
from ..environment import replaced
from ..errors import InputError, reason
from . import current
from .options import Training


def with_plugins_data(get_dataset_fn):
    """Returns OpenCLIP's `get_dataset_fn` with the plugins' hooks for training data."""
    return lambda data_path, dataset_type: functools.partial(_get_dataset, get_dataset_fn(data_path, dataset_type))


def _get_dataset(get_dataset, args, preprocess, *, is_train, epoch=0, tokenizer=None, **options):
    if not is_train:
        return get_dataset(args, preprocess, is_train=False, epoch=epoch, tokenizer=tokenizer, **options)
    shared_epoch = open_clip_train.data.SharedEpoch(epoch)
    hook, order = hooks.plugin_manager().hook, None
    is_pass = get_dataset is open_clip_train.data.get_wds_dataset and not args.dataset_resampled
    if is_pass:
        order = hook.open_clip_data_order(args=args, shared_epoch=shared_epoch)
    caption_tokens = hook.open_clip_caption_tokens(args=args, tokenizer=tokenizer, shared_epoch=shared_epoch)
    names = {}  # of OpenCLIP's data module, and what replaces them
    if order is not None or caption_tokens is not None:
        names["SharedEpoch"] = lambda *_, **__: shared_epoch
    if names or (is_pass and Training(args).is_ours):  # a pass that fills no batch ends the run
        names["wds"] = current().WebDataset(args, order, caption_tokens)
    if order is not None:
        names["detshuffle2"] = lambda **_: order[0]
    if caption_tokens is not None:
        names |= {"CsvDataset": functools.partial(_Table, caption_tokens), **current().PASSED_ON}
        tokenizer = _Tokenized(tokenizer)
    with replaced(open_clip_train.data, **names):
        data = get_dataset(args, preprocess, is_train=True, epoch=epoch, tokenizer=tokenizer, **options)
    if order is not None or caption_tokens is not None:
        data.shared_epoch = shared_epoch  # a table has no shared epoch
    return data


_read_row = CsvDataset.__getitem__  # OpenCLIP's own


class _Tokenized:
    """A tokenizer for captions that are already tokens; OpenCLIP uses those of the first caption."""

    def __init__(self, tokenizer):
        self.context_length = getattr(tokenizer, "context_length", None)
        self.pad_token_id = getattr(tokenizer, "pad_token_id", None)

    def __call__(self, tokens, **_):
        return [tokens]


class _Table(CsvDataset):
    """OpenCLIP's table of images and captions, with the plugins' tokens for text."""

    def __init__(self, caption_tokens, input_filename, *args, sep, tokenizer, variable_text=False, **kwargs):
        super().__init__(input_filename, *args, sep=sep, tokenizer=list, **kwargs)  # a picklable function
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
        loaded, tokens = _read_row(self, row), self.caption_tokens(self._row(row))
        return {**loaded, "text": tokens} if isinstance(loaded, dict) else (loaded[0], tokens)  # OpenCLIP 4's, 3's


def list_unreadable(file: Path, epoch, name: Callable[[str], str] = str) -> None:
    """Makes this process and its data-loading workers append a line of JSON to `file` for everything skipped.

    {"epoch": e, "shard": its name, "why": …} once an epoch and worker, or {"epoch": e, "sample": true, "why": …}.
    Truncated tar files are listed too, which tarfile would otherwise ignore. `epoch` is OpenCLIP's shared epoch, and
    `name` returns the original name of a shard that was read.
    """
    unreadable = _Unreadable(file, epoch, name)
    data = open_clip_train.data
    data.tarfile_to_samples_nothrow = functools.partial(
        data.tarfile_to_samples_nothrow, handler=functools.partial(unreadable.shard, data.log_and_continue)
    )
    data.log_and_continue = functools.partial(unreadable.sample, data.log_and_continue)
    strictly = functools.partial(tarfile.open, tarinfo=StrictTarInfo)
    webdataset.tariterators.tarfile = types.SimpleNamespace(open=strictly)


class _Unreadable:
    """Writes the lines; its methods are webdataset's exception handlers, which wrap OpenCLIP's."""

    def __init__(self, file: Path, epoch, name: Callable[[str], str]):
        self.file, self.epoch, self.name = file, epoch, name
        self.listed = set()  # of this process

    def shard(self, handler, error: Exception) -> bool:
        shard = error.args[-1] if error.args else None
        key = (self.epoch.get_value(), shard)
        if isinstance(shard, str) and len(error.args) > 1 and key not in self.listed:  # webdataset has added the name
            self.listed.add(key)
            self._write({"shard": self.name(shard), "why": f"{type(error).__name__}: {error.args[0]}"})
        return handler(error)

    def sample(self, handler, error: Exception) -> bool:
        self._write({"sample": True, "why": f"{type(error).__name__}: {error}"})
        return handler(error)

    def _write(self, values: dict) -> None:
        line = json.dumps({"epoch": self.epoch.get_value(), **values}) + "\n"
        file = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, line.encode())  # unbuffered: all workers write to one file
        finally:
            os.close(file)


def skip_unreadable_rows(file: Path, epoch) -> None:
    """Makes a table return the next row instead of one with an unreadable image, which is listed in `file`."""
    unreadable = _Unreadable(file, epoch, str)

    def or_next(read_row):
        def read(table, index):
            for row in (*range(index, len(table)), *range(index)):
                try:
                    return read_row(table, row)
                except InputError:
                    raise
                except Exception as error:  # a broken file can raise any exception
                    image = table.images[getattr(table, "kept", range(len(table)))[row]]
                    unreadable.sample(open_clip_train.data.log_and_continue, OSError(f"{image}: {reason(error)}"))
            raise InputError("--train-data: no image of the table can be read")

        return read

    CsvDataset.__getitem__, _Table.__getitem__ = or_next(_read_row), or_next(_Table.__getitem__)
