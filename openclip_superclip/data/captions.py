"""A training sample's tokens: of its short caption, its long one, one of both by chance, or both for one loss each."""

import hashlib
import json
import logging
from multiprocessing import Array
from multiprocessing.util import Finalize
from typing import NamedTuple

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor
from torch.utils.data import get_worker_info

from ..config import Config
from ..errors import InputError, listed
from ..method.token_statistics import special_token_ids
from .shards import caption_place, is_empty, long_caption

END_OF_WORD = "</w>"


def token_texts(tokenizer, vocab_size: int) -> list[str]:
    """Returns a text for each token id below `vocab_size` of an OpenCLIP tokenizer; a part of a word has a hyphen."""
    if isinstance(tokenizer, SimpleTokenizer):
        known = {id: _of_clip(tokenizer, text, id) for text, id in tokenizer.encoder.items()}
    else:
        inner = tokenizer.tokenizer
        known = dict(enumerate(map(_of_others, inner.convert_ids_to_tokens(list(range(min(vocab_size, len(inner))))))))
    return [known.get(id, f"<{id}>") for id in range(vocab_size)]


def _of_clip(tokenizer: SimpleTokenizer, text: str, id: int) -> str:
    word = tokenizer.decode([id]).strip()
    return word if text.endswith(END_OF_WORD) or text.startswith("<") else f"{word}-"


def _of_others(token: str | None) -> str:
    token = token or ""
    if token[:1] in "▁Ġ":  # where SentencePiece and byte-level BPE begin a word
        return token[1:] or token
    return f"-{token[2:]}" if token.startswith("##") else token  # WordPiece's parts


CLEANINGS = ("canonicalize", "lower", "whitespace")  # OpenCLIP's, of a text before it is cut into tokens


class TokenizerIdentity(NamedTuple):
    """A name to show, of class, source and cleaning, and a hash of the vocabulary: tokens and their ids."""

    name: str
    vocabulary: str


def tokenizer_identity(tokenizer) -> TokenizerIdentity:
    """Returns the identity of an OpenCLIP tokenizer."""
    source = getattr(getattr(tokenizer, "tokenizer", None), "name_or_path", "")
    clean = getattr(getattr(tokenizer, "clean_fn", None), "__name__", "").removeprefix("_clean_")
    name = " ".join(filter(None, [type(tokenizer).__name__, source, clean]))
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    vocabulary = inner.get_vocab() if hasattr(inner, "get_vocab") else inner.encoder
    listed = json.dumps(sorted(vocabulary.items(), key=lambda item: item[1]))
    return TokenizerIdentity(name, hashlib.sha256(listed.encode()).hexdigest()[:16])


def same_tokenizer(one: TokenizerIdentity, other: TokenizerIdentity) -> bool:
    """Returns whether class, cleaning and vocabulary are the same, wherever the files lie."""

    def contents(identity):
        kind, *rest = identity.name.split()
        return kind, [name for name in rest[-1:] if name in CLEANINGS], identity.vocabulary

    return contents(one) == contents(other)


NUM_WITHOUT = 10_000  # samples, about a shard's: if none of the first ones has a long caption, none ever will


class Captions(NamedTuple):
    """A sample's texts for the two losses."""

    contrastive: str  # what the text tower reads
    words: str  # the class loss's labels; "" for a caption that is empty or, in a table, missing
    are_long: bool  # whether the words are the long caption's


class CaptionTokens:
    """Makes the tokens of training samples, in the workers of the data loader.

    A sample is a dict: WebDataset's members by extension, decoded or as bytes, or a row of a table. The text tower
    always reads what stock OpenCLIP would give it: of a short caption that is missing in a table, the text 'nan'. The
    class loss sees no word there. pandas takes empty cells, NA, None, null and the like for missing.

    Args:
        caption_key, sample_key: the short caption in the sample, and what names the sample.
        seed: with the epoch, the sample and the worker it decides the draw of the mode *mixed*.
        rank: of this process; None if a sample is read once an epoch, whoever reads it.
        epoch: `get_value()` is the current one, in the workers as well.
        batch_size: of this process.
        found_long: whether the data is known to hold a long caption; if not, 10,000 samples without one end the run.
        separate_words: whether each loss has tokens of its own: in the mode *dual*, and if a table lacks captions.
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
        separate_words: bool = False,
    ):
        self.config, self.tokenizer = config, tokenizer
        self.caption_key, self.sample_key = caption_key, sample_key
        self.seed, self.rank, self.epoch = seed, rank, epoch
        self.batch_size, self.found_long = batch_size, found_long
        self.separate_words = separate_words or config.captions == "dual"
        self.special = torch.tensor(special_token_ids(tokenizer))
        self.counts = CaptionCounts(config.missing_long)

    def __call__(self, sample: dict) -> Tensor | None:
        """Returns the tokens [L], or with `separate_words` the text tower's and the class loss's, [L + words' length].

        None is a sample to leave out. Raises InputError for a missing long caption if --superclip-missing-long is
        error, and if all are missing.
        """
        captions = self.captions(sample)
        if captions is None:
            return None
        length = self.config.long_context or self.tokenizer.context_length
        words = self._tokens(captions.words, length, captions.are_long)
        if not self.separate_words:
            return words
        return torch.cat([self.tokenizer([captions.contrastive])[0], words])

    def captions(self, sample: dict) -> Captions | None:
        """Returns the sample's captions as the mode asks; None if it is to be left out."""
        key = sample.get(self.sample_key)
        read = self._read(sample)
        if read is None:
            return None
        stock, short, long = read
        of_short = Captions(stock, short, are_long=False)
        if self.config.captions == "short":
            return of_short
        self.counts.add_sample(missing=not long)
        if not long:
            self._refuse_if_so(sample, key)
            return None if self.config.missing_long == "skip" else of_short
        if self.config.captions == "dual":
            return Captions(stock, long, are_long=True)
        return of_short if self._draw(f"{key}\0{short}") < self.config.short_share else Captions(long, long, True)

    def keeps(self, sample: dict) -> bool:
        """Returns whether a sample is trained on. A table asks it of each row, once, and leaves the others out."""
        read = self._read(sample)
        return read is not None and (bool(read[2]) or self.config.missing_long != "skip")

    def end_pass(self, num_kept: int) -> None:
        """Raises InputError if a pass over a worker's shards kept too few samples for a batch.

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

    def _read(self, sample: dict) -> tuple[str, str, str] | None:
        """Returns the short caption as stock OpenCLIP reads it, its words and the long caption; either may be "".

        None if one cannot be read.
        """
        try:
            short = sample[self.caption_key]
            stock = short.decode("utf-8") if isinstance(short, bytes) else str(short)
            long = long_caption(sample, key) if (key := self.config.long_caption_key) else ""
        except ValueError as error:  # not UTF-8, not JSON: OpenCLIP warns of such members and goes on
            key = sample.get(self.sample_key)
            logging.warning(f"SuperCLIP: sample {key} is left out, its caption cannot be read ({error})")
            return None
        return stock, "" if is_empty(short) else stock.strip(), long

    def _refuse_if_so(self, sample: dict, key) -> None:
        if self.config.missing_long == "error":
            raise InputError(
                f"--superclip-missing-long: sample {key} has no long caption, '{self.config.long_caption}'"
            )
        if not self.found_long and self.counts.so_far().missing == self.counts.so_far().samples >= NUM_WITHOUT:
            members = listed(name for name in sample if not str(name).startswith("__"))
            raise InputError(
                f"--superclip-long-caption: none of the first {NUM_WITHOUT:,} samples holds "
                f"'{self.config.long_caption}'; the last one holds {members}"
            )

    def _draw(self, name: str) -> float:
        """Returns a number in [0, 1) that depends on nothing but its arguments, so that a resumed run draws it again.

        WebDataset may give several workers, or one epoch several times, the same sample: each worker draws for itself.
        """
        worker = get_worker_info()
        place = "" if self.rank is None else f"{self.rank}:{worker.id if worker else 0}"
        text = f"{self.seed}\0{self.epoch.get_value()}\0{place}\0{name}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big") / 2**56

    def _tokens(self, caption: str, length: int, is_long: bool) -> Tensor:
        """Returns the tokens [length] of a caption, and counts whether a long one was cut."""
        tokens = self.tokenizer([caption], context_length=length)[0]
        if is_long:
            cut = False
            if self._num_words(tokens) >= length - 3:  # no tokenizer adds more than three of its own
                longer = self.tokenizer([caption], context_length=length + 1)[0]
                cut = self._num_words(longer) > self._num_words(tokens)
            self.counts.add_long(cut, length)
        return tokens

    def _num_words(self, tokens: Tensor) -> int:
        return int((~torch.isin(tokens, self.special)).sum())


FIRST_REPORT = 1000  # samples; then at ten, a hundred and a thousand times as many, and so on
HANDLED = {"use-short": "the short one was used", "skip": "they were left out", "error": ""}


class CaptionNumbers(NamedTuple):
    """Samples that were read, those without a long caption, long captions, and those that were cut at `length`."""

    samples: int
    missing: int
    long: int
    cut: int
    length: int


class CaptionCounts:
    """How many samples the workers of this rank read, how many had no long caption, and how many of these were cut."""

    def __init__(self, missing_long: str):
        self._handled = HANDLED[missing_long]
        self._counts = Array("q", len(CaptionNumbers._fields))  # shared by the workers
        Finalize(None, self.report, exitpriority=10)  # runs at the end of a forked process too, unlike atexit

    def so_far(self) -> CaptionNumbers:
        """Returns the numbers of all workers."""
        return CaptionNumbers(*self._counts)

    def add_sample(self, missing: bool) -> None:
        with self._counts.get_lock():
            self._counts[0] += 1
            self._counts[1] += missing
            num_samples = self._counts[0]
        if num_samples >= FIRST_REPORT and str(num_samples).strip("0") == "1":
            self.report()

    def add_long(self, cut: bool, length: int) -> None:
        with self._counts.get_lock():
            self._counts[2] += 1
            self._counts[3] += cut
            self._counts[4] = length

    def report(self) -> None:
        """Logs the counts so far, if there are any."""
        found = self.so_far()
        if not found.samples:
            return
        line = f"SuperCLIP: of {found.samples:,} samples read, {found.missing:,} had no long caption"
        if found.missing and self._handled:
            line += f" ({self._handled})"
        if found.long:
            line += f"; {found.cut / found.long:.1%} of the long ones were cut at {found.length} tokens"
        logging.info(line)


def counted_captions(config: Config, context_length: int) -> str:
    """Returns what the class loss is given, as files of counts describe it: `mixed:0.8 json:re_caption, 77 tokens`."""
    mode, place = _mode(config), caption_place(config.long_caption_key)
    return f"{mode} {place if mode != 'short' else ''}".strip() + f", {config.long_context or context_length} tokens"


def _mode(config: Config) -> str:
    share = 0 if config.captions == "dual" else config.short_share
    return {0: "long", 1: "short"}.get(share, f"mixed:{share}")


def check_counted_captions(
    counted: str, config: Config, context_length: int, *, what: str, command: str, table: bool
) -> None:
    """Raises InputError if the captions `counted`, or how many of their tokens, are not those of a run.

    The message shows the `command` that counts them, with flags. Columns of a table may have other names than members.
    """
    given = counted_captions(config, context_length)
    (there, _, there_tokens), (wanted, _, tokens) = counted.rpartition(", "), given.rpartition(", ")
    if table:
        there, wanted = there.split(" ")[0], wanted.split(" ")[0]
    if (there, there_tokens) == (wanted, tokens):
        return
    flags = "" if wanted == "short" else f" --captions {_mode(config)} --long-caption {config.long_caption}"
    raise InputError(
        f"{what} counts the captions '{counted}', and the class loss is given '{given}': count those with "
        f"{command}{flags} --context {tokens.split()[0]} --out FILE, or train on the captions that were counted"
    )
