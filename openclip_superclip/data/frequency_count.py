"""Counts the tokens of captions over a table or many shards, in parallel, and resumes an interrupted count."""

import functools
import logging
import os
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..config import Config
from ..errors import InputError
from .caption_tokens import CaptionTokens
from .counted_captions import counted_captions
from .forked_workers import work_on
from .frequency_file import Frequencies, count, read_frequencies
from .shard_contents import look
from .shard_pattern import is_remote
from .shard_reader import read_captions
from .table_check import rows_of
from .table_columns import Columns
from .tokenizer_identity import same_tokenizer

BATCH = 1024  # captions tokenized at a time
SECONDS_BETWEEN_PARTS = 30


class FirstEpoch:
    """The epoch of a pass that is the only one."""

    def get_value(self) -> int:
        return 0


class Counting:
    """What is counted: the captions that the class loss would be given, in the tokens that it would see.

    Args:
        columns: of a table, which is counted as a shard is; None for shards.
    """

    def __init__(self, config: Config, tokenizer, seed: int = 0, columns: Columns | None = None):
        self.config, self.tokenizer, self.columns = config, tokenizer, columns
        self.nothing = Frequencies.none(tokenizer, counted_captions(config, tokenizer.context_length))
        self.reader = CaptionTokens(
            config, tokenizer, caption_key=columns.caption if columns else "txt",
            sample_key=columns.image if columns else "__key__", seed=seed, rank=None, epoch=FirstEpoch(),
        )  # fmt: skip

    def captions(self, shard: str) -> Iterator[str]:
        place = self.config.long_caption if self.config.captions != "short" else ""
        for sample in rows_of(shard, self.columns, "DATA") if self.columns else read_captions(shard, place):
            captions = self.reader.captions(sample)
            if captions is not None:
                short, long = captions
                yield short if long is None else long

    def count(self, captions: Iterator[str]) -> tuple[Tensor, int]:
        vocab_size = len(self.nothing.document_frequency)
        return count(_batches(captions), self.tokenizer, vocab_size)

    def check_long_captions(self, shard: str) -> None:
        """Raises InputError where samples were read and none of them had a long caption; `shard` is one of theirs."""
        counts = self.reader.counts
        if not counts.num_missing or counts.num_missing < counts.num_samples:
            return
        what, place = ("row", "columns") if self.columns else ("sample", "members")
        names = ", ".join(next(rows_of(shard, self.columns, "DATA"))) if self.columns else _members(shard)
        raise InputError(
            f"--long-caption: none of {counts.num_samples:,} {what}s holds '{self.config.long_caption}'; the {place} "
            f"of {shard} are {names}"
        )


def _members(shard: str) -> str:
    return "not told: it is no file" if is_remote(shard) else look(shard).members


class Counted(NamedTuple):
    """The counts of one shard."""

    shard: str
    document_frequency: Tensor  # int64 [V]
    num_captions: int
    error: str


def _count_shard(counting: Counting, shard: str) -> Counted:
    errors = []
    df, num_captions = counting.count(_until_broken(counting.captions(shard), errors))
    held = df.nonzero().flatten()
    # A shard holds few of the tokens: what goes back to the parent is small.
    return Counted(shard, torch.stack([held, df[held]]), num_captions, *(errors or [""]))


def _until_broken(captions: Iterator[str], errors: list[str]) -> Iterator[str]:
    """Yields the captions up to where the shard cannot be read, as OpenCLIP does."""
    try:
        yield from captions
    except (OSError, EOFError, tarfile.TarError) as error:
        errors.append(" ".join(str(error).split()))


def count_shards(counting: Counting, shards: list[str], workers: int, out: Path) -> tuple[Frequencies, list[str]]:
    """Returns the counts of all shards, which it writes to `out`, and the shards that could not be read to their end.

    The counts so far are kept in a file beside `out` that is replaced twice a minute; the next call resumes from it.
    """
    if not any(is_remote(shard) or os.path.exists(shard) for shard in shards):
        others = f", nor any other of {len(shards):,} shards" if len(shards) > 1 else ""
        raise InputError(f"DATA: there is no file {shards[0]}{others}")
    part = out.with_name(f"{out.name}.part")
    total = _earlier(part, counting.nothing, shards)
    left = [shard for shard in shards if shard not in set(total.shards)]
    df, broken, done, written = total.document_frequency.clone(), [], [], time.monotonic()
    num_captions = 0

    def so_far() -> Frequencies:
        return total.plus(df - total.document_frequency, num_captions, done)

    try:
        with (
            tqdm(total=len(shards), initial=len(total.shards), unit=" shards", mininterval=1) as progress,
            each_counted(counting, left, workers) as counted_shards,
        ):
            start = time.monotonic()
            for counted in counted_shards:
                held, counts = counted.document_frequency
                df[held] += counts
                num_captions += counted.num_captions
                done.append(counted.shard)
                if counted.error:
                    broken.append(counted.shard)
                    logging.warning(f"{counted.shard}: {counted.error}")
                progress.update()
                progress.set_postfix_str(f"{num_captions / (time.monotonic() - start):,.0f} captions/s")
                if time.monotonic() - written > SECONDS_BETWEEN_PARTS:
                    so_far().write(part)
                    written = time.monotonic()
    except BaseException:
        if done:
            so_far().write(part)
        raise
    result = so_far()
    if not total.shards:
        counting.check_long_captions(shards[0])
    if not result.num_captions:
        raise InputError(f"DATA: no caption could be read from {shards[0]}" + (" and the others" * (len(shards) > 1)))
    result.write(out)
    part.unlink(missing_ok=True)
    return result, broken


def _earlier(part: Path, nothing: Frequencies, shards: list[str]) -> Frequencies:
    """Returns what an interrupted call has counted; InputError where that was another count."""
    if not part.exists():
        return nothing
    earlier = read_frequencies(part)
    same = same_tokenizer(earlier.identity, nothing.identity) and earlier.captions == nothing.captions
    if not same or not set(earlier.shards) <= set(shards):
        raise InputError(
            f"--out: {part} is of an interrupted count of other captions: remove it, or choose another --out"
        )
    return earlier


@contextmanager
def each_counted(counting: Counting, shards: list[str], workers: int):
    """An iterator over the counts of each shard, as they come."""
    count = functools.partial(_count_shard, counting)
    if workers == 1:
        yield map(count, shards)
        return
    with closing(work_on(count, shards, workers, "--workers")) as counted:
        yield counted


def _batches(captions: Iterator[str]) -> Iterator[list[str]]:
    batch = []
    for caption in captions:
        batch.append(caption)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
