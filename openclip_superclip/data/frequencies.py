"""Counts the tokens of captions over a table or many shards, in parallel, and resumes an interrupted count."""

import functools
import itertools
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from ..config import Config
from ..errors import InputError, reason
from ..files import whole_file
from ..method.token_statistics import DocumentFrequency, TokenStatistics, special_token_ids
from .captions import CaptionTokens, TokenizerIdentity, counted_captions, same_tokenizer, tokenizer_identity
from .inspection import inspect_shard
from .shards import BROKEN, is_remote, read_captions, work_on
from .tables import Columns, rows_of

BATCH = 1024  # captions tokenized at a time
SECONDS_BETWEEN_PARTS = 30


@dataclass(frozen=True)
class Frequencies(DocumentFrequency):
    """Numbers of captions per token, and what was counted; captions without any token are not counted."""

    tokenizer: str
    vocabulary: str  # a hash of the tokens and their ids
    captions: str  # --superclip-captions and the key of the long caption
    ignored_tokens: tuple[int, ...]
    shards: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def none(cls, tokenizer, captions: str) -> "Frequencies":
        """Returns the counts before the first caption."""
        ignored = special_token_ids(tokenizer)
        counts = torch.zeros(tokenizer.vocab_size if hasattr(tokenizer, "vocab_size") else len(tokenizer.tokenizer))
        return cls(counts.long(), 0, *tokenizer_identity(tokenizer), captions, ignored)

    @property
    def identity(self) -> TokenizerIdentity:
        return TokenizerIdentity(self.tokenizer, self.vocabulary)

    def plus(self, document_frequency: Tensor, num_captions: int, shards: Iterable[str]) -> "Frequencies":
        """Returns the sum of these counts and those of more shards."""
        return replace(
            self,
            document_frequency=self.document_frequency + document_frequency,
            num_captions=self.num_captions + num_captions,
            shards=(*self.shards, *shards),
        )

    def check(self, tokenizer, what: str) -> None:
        """Raises InputError if the counts are of another tokenizer, or of no caption."""
        if not same_tokenizer(self.identity, tokenizer_identity(tokenizer)):
            raise InputError(
                f"{what} counts the tokens of {self.tokenizer} ({len(self.document_frequency):,} of them), but the "
                f"model's tokenizer, {tokenizer_identity(tokenizer).name}, has others: count again with superclip "
                "frequencies --tokenizer-of this model"
            )
        if not self.num_captions:
            raise InputError(f"{what} counts no caption at all")

    def write(self, path: Path) -> None:
        """Writes the safetensors file."""
        tensors = {
            "document_frequency": self.document_frequency,
            "num_captions": torch.tensor(self.num_captions),
        }
        about = {
            "tokenizer": self.tokenizer,
            "vocabulary": self.vocabulary,
            "vocab_size": str(len(self.document_frequency)),
            "captions": self.captions,
            "ignored_tokens": json.dumps(self.ignored_tokens),
            "shards": json.dumps(self.shards),
        }
        with whole_file(path) as file:
            file.write(save(tensors, about))


def read_frequencies(path: str | Path) -> Frequencies:
    """Returns the counts in a file that `superclip frequencies` wrote; InputError for any other file."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            found = Frequencies(
                file.get_tensor("document_frequency"),
                int(file.get_tensor("num_captions")),
                about["tokenizer"],
                about["vocabulary"],
                about["captions"],
                tuple(json.loads(about["ignored_tokens"])),
                tuple(json.loads(about["shards"])),
            )
        counts = found.document_frequency
        if counts.dtype != torch.int64 or counts.ndim != 1 or (counts < 0).any() or (counts > found.num_captions).any():
            raise ValueError(f"its counts are not whole numbers from 0 to {found.num_captions:,}")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} is no file of word frequencies that superclip frequencies wrote ({reason(error)})"
        ) from error
    return found


def merge(parts: list[Frequencies], names: list[str]) -> Frequencies:
    """Returns the sum of counts of different shards; InputError if their settings differ or they share a shard."""
    total, *others = parts
    for other, name in zip(others, names[1:], strict=True):
        if not same_tokenizer(total.identity, other.identity):
            raise InputError(f"--merge: {name} counts the tokens of {other.tokenizer}, {names[0]} of {total.tokenizer}")
        for what in ("captions", "ignored_tokens"):
            if getattr(other, what) != getattr(total, what):
                raise InputError(
                    f"--merge: {name} has {what} {getattr(other, what)}, but {names[0]} {getattr(total, what)}"
                )
        shared = set(total.shards) & set(other.shards)
        if shared:
            raise InputError(f"--merge: {name} counts {min(shared)} again")
        total = total.plus(other.document_frequency, other.num_captions, other.shards)
    return total


class Counting:
    """What to count: the class loss's captions and their tokens.

    Args:
        columns: the columns of a table, which is counted like a shard; None for shards.
        member: the extension of the short caption in a shard's samples.
    """

    def __init__(self, config: Config, tokenizer, seed: int = 0, columns: Columns | None = None, member: str = "txt"):
        self.config, self.tokenizer, self.columns, self.member = config, tokenizer, columns, member
        self.nothing = Frequencies.none(tokenizer, counted_captions(config, tokenizer.context_length))
        self.reader = CaptionTokens(
            config, tokenizer, caption_key=columns.caption if columns else member,
            sample_key=columns.image if columns else "__key__", seed=seed, rank=None,
            epoch=SimpleNamespace(get_value=lambda: 0),
        )  # fmt: skip

    def captions(self, shard: str) -> Iterator[str]:
        if self.columns:
            samples = rows_of(shard, self.columns, "DATA")
        else:
            samples = read_captions(shard, self.config.long_caption_key, self.member)
        for sample in samples:
            captions = self.reader.captions(sample)
            if captions is not None:
                yield captions.words

    def count(self, captions: Iterator[str]) -> tuple[Tensor, int]:
        """Returns how many captions contain each token (int64 [V]), and how many contain any."""
        statistics = TokenStatistics(len(self.nothing.document_frequency), special_token_ids(self.tokenizer))
        while batch := list(itertools.islice(captions, BATCH)):
            statistics.update(self.tokenizer(batch))
        return statistics.document_frequency, int(statistics.num_captions)

    def check_long_captions(self, shard: str) -> None:
        """Raises InputError if none of the samples had a long caption; `shard` is one of their shards."""
        counts = self.reader.counts.so_far()
        if not counts.missing or counts.missing < counts.samples:
            return
        if self.columns:
            what, place, names = "rows", "columns", ", ".join(next(rows_of(shard, self.columns, "DATA")))
        else:
            what, place = "samples", "members"
            names = "unknown: it is no file" if is_remote(shard) else inspect_shard(shard, until_found=True).members
        raise InputError(
            f"--long-caption: none of {counts.samples:,} {what} holds '{self.config.long_caption}'; the {place} "
            f"of {shard} are {names}"
        )


class Counted(NamedTuple):
    """The counts of one shard, sparse so that little is sent to the parent process."""

    shard: str
    tokens: Tensor  # int64 [K], the token ids that occur
    document_frequency: Tensor  # int64 [K]
    num_captions: int
    error: str


def _count_shard(counting: Counting, shard: str) -> Counted:
    errors = []

    def until_broken() -> Iterator[str]:  # as OpenCLIP reads it
        try:
            yield from counting.captions(shard)
        except BROKEN as error:
            errors.append(reason(error))

    counts, num_captions = counting.count(until_broken())
    tokens = counts.nonzero().flatten()
    return Counted(shard, tokens, counts[tokens], num_captions, *(errors or [""]))


def count_shards(counting: Counting, shards: list[str], workers: int, out: Path) -> tuple[Frequencies, list[str]]:
    """Writes the counts of all shards to `out`; returns them, and the shards that could not be read completely.

    The counts so far are saved twice a minute in a file beside `out`; the next call resumes from it.
    """
    if not any(is_remote(shard) or os.path.exists(shard) for shard in shards):
        others = f", nor any other of {len(shards):,} shards" if len(shards) > 1 else ""
        raise InputError(f"DATA: there is no file {shards[0]}{others}")
    part = out.with_name(f"{out.name}.part")
    total = earlier = _earlier(part, counting.nothing, shards)
    left = [shard for shard in shards if shard not in set(total.shards)]
    broken, start = [], time.monotonic()
    written = start
    count = functools.partial(_count_shard, counting)
    counted_shards = work_on(count, left, workers, "--workers") if workers > 1 else (count(shard) for shard in left)
    try:
        with (
            tqdm(total=len(shards), initial=len(total.shards), unit=" shards", mininterval=1, disable=None) as progress,
            closing(counted_shards),
        ):
            for counted in counted_shards:
                counts = torch.zeros_like(total.document_frequency)
                counts[counted.tokens] = counted.document_frequency
                total = total.plus(counts, counted.num_captions, [counted.shard])
                if counted.error:
                    broken.append(counted.shard)
                    logging.warning(f"{counted.shard}: {counted.error}")
                progress.update()
                num_new, seconds = total.num_captions - earlier.num_captions, time.monotonic() - start
                progress.set_postfix_str(f"{num_new / seconds:,.0f} captions/s")
                if time.monotonic() - written > SECONDS_BETWEEN_PARTS:
                    total.write(part)
                    written = time.monotonic()
    except BaseException:
        if total is not earlier:
            total.write(part)
        raise
    if not earlier.shards:
        counting.check_long_captions(shards[0])
    if not total.num_captions:
        raise InputError(f"DATA: no caption could be read from {shards[0]}" + (" and the others" * (len(shards) > 1)))
    total.write(out)
    part.unlink(missing_ok=True)
    return total, broken


def _earlier(part: Path, nothing: Frequencies, shards: list[str]) -> Frequencies:
    """Returns the counts of an interrupted call; InputError if its settings were different."""
    if not part.exists():
        return nothing
    earlier = read_frequencies(part)
    same = same_tokenizer(earlier.identity, nothing.identity) and earlier.captions == nothing.captions
    if not same or not set(earlier.shards) <= set(shards):
        raise InputError(
            f"--out: {part} is of an interrupted count of other captions: remove it, or choose another --out"
        )
    return earlier
