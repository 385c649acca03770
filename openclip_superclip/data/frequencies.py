"""Counts the captions of a table or of shards that contain each token, in parallel processes."""

import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import InputError, listed, reason
from ..files import write_bytes
from ..flags import Config
from ..method.idf import TokenStatistics, special_token_ids
from .caption_text import caption_member, caption_place
from .captions import CaptionTokens, tokenizer_identity, vocabulary
from .tables import Columns, chunks_of
from .tar_shards import BROKEN, check_any_exists, is_remote, is_trained, read_members, why_broken
from .workers import work_on

BATCH = 1024  # captions tokenized at a time
MAX_UNREADABLE = 0.01  # fraction of the shards, as in training
COMMAND = "superclip frequencies"  # which the file contains
ABOUT = "about"  # the entry of the file's metadata with all other facts


@dataclass(frozen=True)
class Frequencies:
    """Numbers of captions per token, and what was counted; captions without any token are not
    counted."""

    document_frequency: Tensor  # int64 [V], captions that contain each token
    num_captions: int
    tokenizer: str
    vocabulary: str  # a hash of the tokens and their ids
    captions: str  # --captions, and the key of the long caption in shards
    context: int | None = None  # tokens read of each caption; None in files of version 0.2
    member: str = ""  # the extension of the short caption in shards; "" if unknown
    missing_long: str = ""  # --missing-long, if a long caption was missing

    def check(self, tokenizer, what: str) -> None:
        """Raises InputError if the counts are of another tokenizer, or of no caption."""
        identity = tokenizer_identity(tokenizer)
        if (self.tokenizer, self.vocabulary) != identity:
            raise InputError(
                f"{what} counts the tokens of {self.tokenizer} ({len(self.document_frequency):,} "
                f"of them), but the model's tokenizer, {identity.name}, has others: count again "
                "with superclip frequencies --tokenizer-of this model"
            )
        if not self.num_captions:
            raise InputError(f"{what} counts no caption at all")

    def check_captions(
        self,
        config: Config,
        context: int,
        what: str,
        command: list[str],
        *,
        is_table: bool,
        member: str,
    ) -> None:
        """Raises InputError if the class loss reads other captions than the file counts, or more or
        fewer tokens.

        `context` is the number of tokens that the class loss reads. The keys of long captions are
        compared if both the file and the run read shards, whose short captions have the extension
        `member`. `command` counts the captions; the flags that choose them are added to it.
        """
        counted, counted_key = _kind(self.captions)
        read, read_key = _kind(counted_captions(config, is_table=is_table))
        same_key = counted_key == read_key or "" in (counted_key, read_key)
        same_member = is_table or self.member in ("", member) or read == 0
        mode = config.captions.replace("dual", "long")
        wanted = f"{mode} {config.long_caption}".strip()
        missing_long = f"--missing-long {config.missing_long}"
        different = {}  # what is read instead of what is counted
        if counted != read or not same_key:
            different[self.captions] = wanted
        if not same_member:
            different[f".{self.member}"] = f".{member}"
        if self.missing_long not in ("", config.missing_long):
            different[f"--missing-long {self.missing_long}"] = missing_long
        if self.context not in (None, context):
            different[f"{self.context} tokens"] = f"{context} tokens"
        if not different:
            return
        if mode != "short":
            command += ["--captions", mode, "--long-caption", config.long_caption]
            command += missing_long.split()
        if member != "txt":
            command += ["--text-key", member]
        in_file = ", ".join(different)
        in_run = ", ".join(different.values())
        raise InputError(
            f"{what} counts '{in_file}', but the class loss reads '{in_run}': count these captions "
            f"with {shlex.join(command)} --context {context} --out FILE"
        )

    def write(self, path: Path) -> None:
        """Writes the safetensors file."""
        tensors = {
            "document_frequency": self.document_frequency,
            "num_captions": torch.tensor(self.num_captions),
        }
        about = {name: value for name, value in vars(self).items() if name not in tensors}
        about["written_by"] = COMMAND
        # a single entry, because safetensors writes several in random order
        write_bytes(path, save(tensors, {ABOUT: json.dumps(about)}))


def read_frequencies(path: str | Path) -> Frequencies:
    """Returns the counts in a file that `superclip frequencies` wrote; InputError for any other
    file."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            about |= json.loads(about.get(ABOUT, "{}"))  # version 0.2 wrote several entries
            counts = file.get_tensor("document_frequency")
            if old := re.fullmatch(r"(.*), (\d+) tokens", about["captions"]):  # of version 0.2
                about["captions"], about["context"] = old.groups()
            frequencies = Frequencies(
                counts,
                int(file.get_tensor("num_captions")),
                about["tokenizer"],
                about["vocabulary"],
                about["captions"],
                int(about["context"]) if about.get("context") else None,
                about.get("member", ""),
                about.get("missing_long", ""),
            )
        most = frequencies.num_captions
        is_vector = counts.dtype == torch.int64 and counts.ndim == 1
        if not is_vector or (counts < 0).any() or (counts > most).any():
            raise ValueError(f"its counts are not integers from 0 to {most:,}")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} is not a file of token frequencies that superclip frequencies wrote "
            f"({reason(error)})"
        ) from error
    return frequencies


def counted_captions(config: Config, *, is_table: bool) -> str:
    """Returns the captions of the class loss as a file records them, such as `short` and `mixed:0.8
    json:re_caption`.

    The column of a table is not recorded, because the same captions have another key in shards.
    """
    key = "" if is_table else config.long_caption_key
    return f"{config.captions} {key}".strip()


def _kind(captions: str) -> tuple[float, str]:
    """Returns the probability of the short caption, and the key of the long one, "" if it is not
    read or recorded.

    For the class loss, `dual` is `long`.
    """
    mode, _, key = captions.replace("dual", "long", 1).partition(" ")
    if mode == "short":
        return 1.0, ""
    probability = Config(captions=mode, long_caption=key or "-").short_probability
    return probability, "" if probability == 1 else caption_place(key)


class ShardCounts(NamedTuple):
    """The counts of a shard, sparse so that those of thousands of shards fit in memory."""

    tokens: Tensor  # int64 [K], the token ids that occur
    document_frequency: Tensor  # int64 [K], of these
    num_captions: int
    problem: str  # why the shard could not be read to its end, or ""


@dataclass
class CaptionCounter:
    """Counts the class loss's captions in shards, or in a table, which counts as one shard."""

    config: Config
    tokenizer: object
    seed: int  # of the mode *mixed*
    columns: Columns | None  # of a table
    member: str  # the extension of a sample's short caption

    def __post_init__(self):
        columns = self.columns
        self.vocab_size = 1 + max(vocabulary(self.tokenizer).values())
        self.reader = CaptionTokens(
            self.config,
            self.tokenizer,
            caption_key=columns.caption if columns else self.member,
            sample_key=columns.image if columns else "__key__",
            seed=self.seed,
            rank=None,
            epoch=SimpleNamespace(get_value=lambda: 0),
        )

    def count_shard(self, shard: str) -> ShardCounts:
        """Returns the counts of a shard, up to its first defect."""
        statistics = TokenStatistics(self.vocab_size, special_token_ids(self.tokenizer))
        texts = []
        problem = ""
        try:
            for sample in self._samples(shard):
                captions = self.reader.captions(sample)
                if captions is not None:
                    texts.append(captions.words)
                if len(texts) == BATCH:
                    statistics.update(self.tokenizer(texts))
                    texts.clear()
        except BROKEN as error:
            problem = why_broken(error)
        if texts:
            statistics.update(self.tokenizer(texts))
        counts = statistics.document_frequency
        tokens = counts.nonzero().flatten()
        return ShardCounts(tokens, counts[tokens], int(statistics.num_captions), problem)

    def _samples(self, shard: str) -> Iterator[dict]:
        """Yields the samples on which OpenCLIP trains."""
        if self.columns:
            for rows in chunks_of(shard, self.columns, "DATA"):
                yield from rows.to_dict("records")
            return
        wanted = {self.member, caption_member(self.config.long_caption_key)}
        for sample in read_members(shard, wanted):
            if is_trained(sample, self.member):
                yield sample

    def count(self, shards: list[str], workers: int) -> tuple[Frequencies, dict[str, str]]:
        """Returns the counts of all shards, and why some are missing or were not read to their end.

        Raises InputError if these are more than the fraction MAX_UNREADABLE, as soon as possible.
        """
        check_any_exists(shards, "DATA")
        problems = {
            shard: "no such file"
            for shard in shards
            if not (is_remote(shard) or os.path.exists(shard))
        }
        _check_readable(problems, len(shards))
        document_frequency = torch.zeros(self.vocab_size, dtype=torch.int64)
        num_captions = 0
        counted = work_on(self.count_shard, shards, workers)
        for shard, counts in zip(shards, counted, strict=True):
            document_frequency[counts.tokens] += counts.document_frequency
            num_captions += counts.num_captions
            if counts.problem:
                problems[shard] = counts.problem
                _check_readable(problems, len(shards))
        num_samples, num_missing = self.reader.counts.so_far()
        if num_missing and num_missing == num_samples:
            raise InputError(
                f"--long-caption: no text at '{self.config.long_caption}' in {num_samples:,} "
                "samples"
            )
        if not num_captions:
            raise InputError(f"DATA: no caption could be read from {listed(shards, 1)}")
        frequencies = Frequencies(
            document_frequency,
            num_captions,
            *tokenizer_identity(self.tokenizer),
            counted_captions(self.config, is_table=self.columns is not None),
            self.tokenizer.context_length,
            "" if self.columns else self.member,
            self.config.missing_long if num_missing else "",
        )
        return frequencies, problems


def _check_readable(problems: dict[str, str], num_shards: int) -> None:
    """Raises InputError if more than the fraction MAX_UNREADABLE of the shards have problems."""
    if len(problems) > MAX_UNREADABLE * num_shards:
        raise InputError(
            f"DATA: {unreadable_text(problems, num_shards)}; expected at most "
            f"{MAX_UNREADABLE:.0%} of the shards: repair them, or leave them out of the pattern"
        )


def unreadable_text(problems: dict[str, str], num_shards: int) -> str:
    """Returns a message on shards that were not read to their end, with the problem of each."""
    named = listed(f"{shard} ({problem})" for shard, problem in problems.items())
    return f"{len(problems):,} of {num_shards:,} shards cannot be read to their end: {named}"
