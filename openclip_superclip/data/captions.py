"""Tokens of training samples: the short caption, the long caption, a random one of the two, or
one for each loss."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from multiprocessing import Array
from typing import NamedTuple

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor
from torch.utils.data import get_worker_info

from ..errors import InputError, listed
from ..flags import Config
from .caption_text import long_caption, text_of
from .shard_order import check_batch

PADDING = "<padding_of_text>"  # the second name of token 0 in exports of OpenCLIP's own tokenizer


def vocabulary(tokenizer) -> dict[str, int]:
    """Returns the tokens and their ids, which are the same for OpenCLIP's own tokenizer and for
    its export."""
    if isinstance(tokenizer, SimpleTokenizer):
        return tokenizer.encoder
    return {token: id for token, id in tokenizer.tokenizer.get_vocab().items() if token != PADDING}


class TokenizerIdentity(NamedTuple):
    """A display name (class and cleaning) and a hash of the vocabulary; the location of the
    files does not matter."""

    name: str
    vocabulary: str


def tokenizer_identity(tokenizer) -> TokenizerIdentity:
    """Returns the identity of an OpenCLIP tokenizer, which is the same for its export."""
    clean = getattr(getattr(tokenizer, "clean_fn", None), "__name__", "").removeprefix("_clean_")
    is_export = getattr(getattr(tokenizer, "tokenizer", None), "pad_token", None) == PADDING
    kind = SimpleTokenizer if is_export else type(tokenizer)
    text = json.dumps(sorted(vocabulary(tokenizer).items(), key=lambda item: item[1]))
    name = f"{kind.__name__} {clean}".strip()
    return TokenizerIdentity(name, hashlib.sha256(text.encode()).hexdigest()[:16])


# samples, about one shard: without a long caption in these, the data is assumed to have none
NUM_WITHOUT = 10_000


class Captions(NamedTuple):
    """A caption, or two, as the two losses read it."""

    contrastive: str  # for the text tower, as stock OpenCLIP reads it
    words: str  # for the class loss; "" for a caption that is empty or, in a table, missing


@dataclass(eq=False)
class CaptionTokens:
    """Tokenizes training samples in the workers of the data loader.

    A sample is a dict: WebDataset's members by extension, decoded or as bytes, or a row of a table.
    The text tower always gets the same text as in stock OpenCLIP: 'nan' if a table has no short
    caption. The class loss gets no words then. pandas treats empty cells, NA, None, null and the
    like as missing.

    Args:
        caption_key, sample_key: keys of the short caption and of the sample's name.
        rank: the rank of this process; None if each sample is read once per epoch, on any rank, and
            the data is known to have long captions: otherwise the run fails after NUM_WITHOUT
            samples without one.
        epoch: its `get_value()` returns the current epoch, in the workers as well.
        separate_words: whether each loss has its own tokens: in the mode *dual*, and if a table
            lacks captions.
    """

    config: Config
    tokenizer: Callable
    _: KW_ONLY
    caption_key: str
    sample_key: str
    seed: int
    rank: int | None
    epoch: object
    batch_size: int = 1
    separate_words: bool = False

    def __post_init__(self):
        self.counts = CaptionCounts(self.config.missing_long)

    def __call__(self, sample: dict) -> Tensor | None:
        """Returns the tokens [L], or with `separate_words` the text tower's tokens followed by the
        class loss's.

        Returns None for a sample to skip. Raises InputError for a missing long caption if
        --superclip-missing-long is error, or if all long captions are missing.
        """
        captions = self.captions(sample)
        if captions is None:
            return None
        length = self.config.long_context or self.tokenizer.context_length
        words = self.tokenizer([captions.words], context_length=length)[0]
        if not self.separate_words:
            return words
        return torch.cat([self.tokenizer([captions.contrastive])[0], words])

    def captions(self, sample: dict) -> Captions | None:
        """Returns the sample's captions according to the mode, or None to skip the sample."""
        short, long = self._read(sample)
        if short is None or self.config.captions == "short":
            return short
        self.counts.add(missing=not long)
        if not long:
            self._check_missing(sample)
            return None if self.config.missing_long == "skip" else short
        if self.config.captions == "dual":
            return short._replace(words=long)
        draw = self._draw(f"{sample.get(self.sample_key)}\0{short.words}")
        return short if draw < self.config.short_probability else Captions(long, long)

    def _check_missing(self, sample: dict) -> None:
        """Raises InputError if a long caption may not be missing, or if all of them are."""
        if self.config.missing_long == "error":
            raise InputError(
                f"--superclip-missing-long: sample {sample.get(self.sample_key)} has no long "
                f"caption, '{self.config.long_caption}'"
            )
        num_samples, num_missing = self.counts.so_far()
        if self.rank is not None and num_missing == num_samples >= NUM_WITHOUT:
            members = listed(name for name in sample if not str(name).startswith("__"))
            raise InputError(
                f"--superclip-long-caption: none of the first {NUM_WITHOUT:,} samples holds "
                f"'{self.config.long_caption}'; the last one holds {members}"
            )

    def keeps(self, sample: dict) -> bool:
        """Returns whether a sample is used for training. Called once for each row of a table."""
        short, long = self._read(sample)
        return short is not None and (bool(long) or self.config.missing_long != "skip")

    def end_pass(self, num_kept: int) -> None:
        """Raises InputError if a pass over a worker's shards kept less than one batch."""
        skips = self.config.missing_long == "skip"
        flag = "--superclip-missing-long skip" if skips else "--train-data"
        check_batch(num_kept, self.batch_size, flag)

    def _read(self, sample: dict) -> tuple[Captions | None, str]:
        """Returns a sample's short caption, None if a caption cannot be read, and its long one, ""
        if it is missing."""
        key = self.config.long_caption_key
        try:
            short = sample[self.caption_key]
            stock = short.decode("utf-8") if isinstance(short, bytes) else str(short)
            long = long_caption(sample, key) if key else ""
        except ValueError as error:  # not UTF-8 or not JSON: OpenCLIP warns and continues
            name = sample.get(self.sample_key)
            logging.warning(
                f"SuperCLIP: sample {name} is left out, its caption cannot be read ({error})"
            )
            return None, ""
        return Captions(stock, text_of(short)), long

    def _draw(self, name: str) -> float:
        """Returns a number in [0, 1), the same in a resumed run, for each worker that reads the
        sample."""
        worker = get_worker_info()
        reader = "" if self.rank is None else f"{self.rank}:{worker.id if worker else 0}"
        text = f"{self.seed}\0{self.epoch.get_value()}\0{reader}\0{name}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big") / 2**56


FIRST_REPORT = 1000  # samples; the next reports follow at 10, 100, 1000 times as many


class CaptionCounts:
    """Counts the samples and the missing long captions of all workers of this rank."""

    def __init__(self, missing_long: str):
        self._missing_long = missing_long
        self._counts = Array("q", 2)  # shared between workers

    def so_far(self) -> tuple[int, int]:
        """Returns the numbers of samples and of missing long captions."""
        return tuple(self._counts)

    def add(self, *, missing: bool) -> None:
        with self._counts.get_lock():
            self._counts[0] += 1
            self._counts[1] += missing
            num_samples = self._counts[0]
        if num_samples >= FIRST_REPORT and str(num_samples).strip("0") == "1":
            self.report()

    def report(self) -> None:
        """Logs the counts so far."""
        num_samples, num_missing = self.so_far()
        if num_samples:
            logging.info(
                f"SuperCLIP: of {num_samples:,} samples read, {num_missing:,} had no long caption "
                f"(--superclip-missing-long {self._missing_long})"
            )
