"""A training sample's tokens: of its short caption, its long one, one of both by chance, or both for one loss each."""

import hashlib
import json
import logging
from numbers import Number

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from ..config import Config
from ..errors import InputError
from ..method.token_statistics import special_token_ids
from .long_caption_coverage import CaptionCounts

NUM_WITHOUT = 10_000  # samples, about a shard's: if none of the first ones has a long caption, none ever will


class CaptionTokens:
    """Makes the tokens of training samples, in the workers of the data loader.

    A sample is a dict: WebDataset's members by extension, decoded or as bytes, or a row of a table. In the mode *dual*
    the tokens are those of the short caption, for the text tower, and then those of the long one, for the class loss.

    Args:
        config: the modes and the place of the long caption.
        tokenizer: OpenCLIP's.
        caption_key: the short caption in the sample.
        sample_key: what names the sample in it.
        seed: with the epoch, the sample and the worker it decides the draw of the mode *mixed*.
        rank: of this process; None where a sample is read once an epoch, whoever reads it.
        epoch: `get_value()` is the current one, in the workers as well.
        batch_size: of this process.
        found_long: whether the data is known to hold a long caption; if not, 10,000 samples without one end the run.
    """

    def __init__(
        self,
        config: Config,
        tokenizer,
        *,
        caption_key: str,
        sample_key: str,
        seed: int,
        rank: int | None,
        epoch,
        batch_size: int = 1,
        found_long: bool = False,
    ):
        self.config, self.tokenizer = config, tokenizer
        self.caption_key, self.sample_key = caption_key, sample_key
        self.seed, self.rank, self.epoch = seed, rank, epoch
        self.batch_size, self.found_long = batch_size, found_long
        self.special = torch.tensor(special_token_ids(tokenizer))
        self.counts = CaptionCounts(config.missing_long)

    def __call__(self, sample: dict) -> Tensor | None:
        """Returns the tokens [L], or [L + long context] for *dual*; None for a sample that is to be left out.

        Raises InputError for a missing long caption where --superclip-missing-long says error, and where all are.
        """
        captions = self.captions(sample)
        if captions is None:
            return None
        short, long = captions
        if self.config.captions == "dual":
            tokens = self.tokenizer([short])[0]
            return torch.cat([tokens, self._tokens(long, self.config.long_context or len(tokens))])
        if long is None:
            return self.tokenizer([short])[0]
        return self._tokens(long, self.config.long_context or self.tokenizer.context_length)

    def captions(self, sample: dict) -> tuple[str, str | None] | None:
        """Returns the sample's captions as the mode asks: short and long, or short and None if that alone is drawn."""
        key = sample.get(self.sample_key)
        captions = self._read(sample)
        if captions is None:
            return None
        short, long = captions
        if self.config.captions == "short":
            return short, None
        self.counts.add_sample(missing=not long)
        if not long:
            self._refuse_if_so(sample, key)
            if self.config.missing_long == "skip":
                return None
            return short, short if self.config.captions == "dual" else None
        share = self.config.short_share
        return short, None if share is not None and self._draw(f"{key}\0{short}") < share else long

    def keeps(self, sample: dict) -> bool:
        """Returns whether a sample is trained on. A table asks it of each row, once, and leaves the others out."""
        captions = self._read(sample)
        return captions is not None and (bool(captions[1]) or self.config.missing_long != "skip")

    def end_pass(self, num_kept: int) -> None:
        """Raises InputError where a pass over a worker's shards kept too few samples for a batch.

        OpenCLIP would pass over them again, forever.
        """
        if num_kept >= self.batch_size:
            return
        if self.config.missing_long == "skip":
            found = f"--superclip-missing-long skip keeps {num_kept:,} samples of the shards that a worker reads"
            instead = ", or --superclip-missing-long use-short"
        else:
            found, instead = f"--train-data: the shards that a worker reads hold {num_kept:,} samples", ""
        raise InputError(
            f"{found}, and --batch-size is {self.batch_size:,}; expected a full batch or more: give fewer --workers or "
            f"a smaller --batch-size{instead}"
        )

    def _read(self, sample: dict) -> tuple[str, str] | None:
        """Returns the short caption and the long one, which may be ""; None where one cannot be read."""
        try:
            short = sample[self.caption_key]
            short = "" if is_empty(short) else short.decode("utf-8") if isinstance(short, bytes) else str(short)
            short = short.strip()
            long = long_caption(sample, self.config.long_caption) if self.config.captions != "short" else ""
        except ValueError as error:  # not UTF-8, not JSON: OpenCLIP warns of such members and goes on
            key = sample.get(self.sample_key)
            logging.warning(f"SuperCLIP: sample {key} is left out, its caption cannot be read ({error})")
            return None
        return short, long

    def _refuse_if_so(self, sample: dict, key) -> None:
        if self.config.missing_long == "error":
            raise InputError(
                f"--superclip-missing-long: sample {key} has no long caption, '{self.config.long_caption}'"
            )
        if not self.found_long and self.counts.num_missing == self.counts.num_samples >= NUM_WITHOUT:
            members = ", ".join(name for name in sample if not str(name).startswith("__"))
            raise InputError(
                f"--superclip-long-caption: none of the first {NUM_WITHOUT:,} samples holds "
                f"'{self.config.long_caption}'; the last one holds {members}"
            )

    def _draw(self, name: str) -> float:
        """Returns a number in [0, 1) that depends on nothing but its arguments, so that a resumed run draws it again.

        WebDataset may give several workers, or one epoch several times, the same sample: each worker draws anew.
        """
        worker = get_worker_info()
        place = "" if self.rank is None else f"{self.rank}:{worker.id if worker else 0}"
        text = f"{self.seed}\0{self.epoch.get_value()}\0{place}\0{name}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big") / 2**56

    def _tokens(self, long: str, length: int) -> Tensor:
        """Returns the tokens [length] of a long caption, and counts whether it was cut."""
        tokens = self.tokenizer([long], context_length=length)[0]
        cut = False
        if self._num_words(tokens) >= length - 3:  # no tokenizer adds more than three of its own
            cut = self._num_words(self.tokenizer([long], context_length=length + 1)[0]) > self._num_words(tokens)
        self.counts.add_long(cut, length)
        return tokens

    def _num_words(self, tokens: Tensor) -> int:
        return int((~torch.isin(tokens, self.special)).sum())


def long_caption(sample: dict, place: str) -> str:
    """Returns the caption at `place`, a member, a column or `json:a.b`, a field of the JSON; "" where there is none."""
    if not place.startswith("json:"):
        return _text(sample.get(place, sample.get(place.lower().lstrip("."))))
    value = sample.get("json")
    if isinstance(value, (bytes, str)):
        value = json.loads(value)
    for name in place.removeprefix("json:").split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return _text(value)


def is_empty(value) -> bool:
    """Returns whether a cell or member holds no caption; pandas' empty cell is no word 'nan'."""
    return isinstance(value, float | str | bytes) and not _text(value)


def _text(value) -> str:
    """Returns the caption without blanks around it; a number's digits; "" for whatever else, such as an empty cell."""
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if isinstance(value, Number) and value == value:  # NaN is pandas' empty cell
        value = str(value)
    return value.strip() if isinstance(value, str) else ""
