"""OpenCLIP's training data with the plugins' order and tokens, and a log of samples that cannot
be read."""

import contextlib
import inspect
import itertools
import json
import logging
import os
import socket
import tarfile
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import open_clip_train.data
import pandas as pd
import webdataset.tariterators
from open_clip_train.data import CsvDataset, log_and_continue

from .. import hooks
from ..data.images import restrict_formats
from ..data.tar_shards import StrictTarInfo
from ..environment import replaced
from ..errors import InputError, reason
from ..files import check_regular
from . import current, output_folder


def with_plugins_data(get_dataset_fn):
    """Returns OpenCLIP's `get_dataset_fn` with the plugins' hooks for training data."""
    return lambda *args, **kwargs: partial(_get_dataset, get_dataset_fn(*args, **kwargs))


def _get_dataset(get_dataset, *given, **options):
    """Calls one of OpenCLIP's functions that make a data set, which for training has the plugins'
    order and tokens."""
    call = inspect.signature(get_dataset).bind(*given, **options)
    call.apply_defaults()
    args = call.arguments["args"]
    tokenizer = call.arguments["tokenizer"]
    is_train = call.arguments["is_train"]
    is_ours = args in output_folder.started
    shared_epoch = open_clip_train.data.SharedEpoch(call.arguments["epoch"])
    hook = hooks.plugin_manager().hook
    order = None
    caption_tokens = None
    is_pass = get_dataset is open_clip_train.data.get_wds_dataset and not args.dataset_resampled
    if is_train and is_pass:
        order = hook.open_clip_data_order(args=args, shared_epoch=shared_epoch)
    if is_train:
        caption_tokens = hook.open_clip_caption_tokens(
            args=args, tokenizer=tokenizer, shared_epoch=shared_epoch
        )
    is_changed = order is not None or caption_tokens is not None
    names = {}  # of OpenCLIP's data module, and what replaces them
    if is_ours or is_changed:
        names["wds"] = current().WebDataset(args, order, caption_tokens)
    if is_ours:
        names["CsvDataset"] = _Images
    if order is not None:
        names["detshuffle2"] = lambda **_: order[0]
    if caption_tokens is not None:
        names |= {"CsvDataset": partial(_Table, caption_tokens), **current().PASSED_ON}
        call.arguments["tokenizer"] = _Tokenized(tokenizer)
    if is_changed:
        names["SharedEpoch"] = lambda *_, **__: shared_epoch
    listing = _Images.listing if is_train else None
    with replaced(open_clip_train.data, **names), replaced(_Images, listing=listing):
        data = get_dataset(*call.args, **call.kwargs)
    if is_changed:
        data.shared_epoch = shared_epoch  # a table has no shared epoch
    return data


class _Tokenized:
    """A tokenizer for captions that are already tokens; OpenCLIP uses those of the first
    caption."""

    def __init__(self, tokenizer):
        self.context_length = getattr(tokenizer, "context_length", None)
        self.pad_token_id = getattr(tokenizer, "pad_token_id", None)

    def __call__(self, tokens, **_):
        return [tokens]


class _Images(CsvDataset):
    """OpenCLIP's table of images and captions, whose images must be regular files of common
    formats.

    A table of training data that is opened in `listing_unreadable` returns the next row instead of
    one whose image cannot be read. It keeps `listing` as an attribute of its own, because workers
    that are not forked get the table by pickle.
    """

    listing: "_Unreadable | None" = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.unreadable = _Images.listing

    def __getitem__(self, index):
        restrict_formats()
        rows = getattr(self, "kept", range(len(self)))
        for position in itertools.chain(range(index, len(self)), range(index)):
            image = self.images[rows[position]]
            try:
                check_regular(image)
                return self.read(position)
            except InputError:
                raise
            except Exception as error:  # a broken file can raise any exception
                if self.unreadable is None:
                    raise InputError(f"{image} cannot be read ({reason(error)})") from error
                self.unreadable.sample(OSError(f"{image}: {reason(error)}"))
        raise InputError("--train-data: no image of the table can be read")

    def read(self, index):
        """Returns the sample of a row, as the table would without this class."""
        return super().__getitem__(index)


class _Table(_Images):
    """The same with the plugins' tokens for text."""

    def __init__(
        self, caption_tokens, input_filename, *args, sep, tokenizer, variable_text=False, **kwargs
    ):
        # a picklable function
        super().__init__(input_filename, *args, sep=sep, tokenizer=list, **kwargs)
        table = pd.read_csv(input_filename, sep=sep)
        self.columns = {name: table[name].tolist() for name in table}
        self.caption_tokens = caption_tokens
        self.kept = range(len(table))
        if hasattr(caption_tokens, "keeps"):
            self.kept = [row for row in self.kept if caption_tokens.keeps(self._row(row))]
            logging.info(
                f"rows left out by a plugin: {len(table) - len(self.kept):,} of {len(table):,}"
            )

    def _row(self, row: int) -> dict:
        return {name: values[row] for name, values in self.columns.items()}

    def __len__(self):
        return len(self.kept)

    def read(self, index):
        row = self.kept[index]
        sample = super().read(row)
        tokens = self.caption_tokens(self._row(row))
        if isinstance(sample, dict):  # OpenCLIP 4's
            return {**sample, "text": tokens}
        return sample[0], tokens


@contextlib.contextmanager
def listing_unreadable(file: Path, epoch: Callable[[], int]):
    """A context in which everything that training skips is appended to `file`, in lines of JSON.

    {"epoch": e, "shard": its path, "why": …} once an epoch and worker, or {"epoch": e, "sample":
    true, "why": …}. Truncated tar files are listed too, which tarfile would otherwise ignore, and
    tables return the next row instead of one with an unreadable image. Data-loading workers that
    are not forked unpickle `epoch` when they start.
    """
    unreadable = _Unreadable(file, epoch)
    data = open_clip_train.data
    read_shards = partial(data.tarfile_to_samples_nothrow, handler=unreadable.shard)
    strictly = partial(tarfile.open, tarinfo=StrictTarInfo)
    with (
        replaced(
            data,
            tarfile_to_samples_nothrow=read_shards,
            log_and_continue=unreadable.sample,
            CsvDataset=_Images,
        ),
        replaced(_Images, listing=unreadable),
        replaced(webdataset.tariterators, tarfile=types.SimpleNamespace(open=strictly)),
    ):
        yield


@dataclass
class _Unreadable:
    """Writes the lines; its methods are webdataset's exception handlers, which call OpenCLIP's."""

    file: Path
    epoch: Callable[[], int]
    listed: set = field(default_factory=set)  # of this process

    def shard(self, error: Exception) -> bool:
        shard = error.args[-1] if error.args else None
        key = (self.epoch(), shard)
        # webdataset has added the name
        if isinstance(shard, str) and len(error.args) > 1 and key not in self.listed:
            self.listed.add(key)
            why = getattr(error, "strerror", None) or error.args[0]
            self._write(
                {
                    "shard": os.path.abspath(shard),
                    "why": f"{type(error).__name__}: {why}, on {socket.gethostname()}",
                }
            )
        return log_and_continue(error)

    def sample(self, error: Exception) -> bool:
        self._write({"sample": True, "why": f"{type(error).__name__}: {error}"})
        return log_and_continue(error)

    def _write(self, values: dict) -> None:
        line = json.dumps({"epoch": self.epoch(), **values}) + "\n"
        with open(self.file, "ab", buffering=0) as file:  # all workers write to one file
            file.write(line.encode())
