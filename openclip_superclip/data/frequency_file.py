"""How many captions of a data set hold each token, in a file, with what they were counted of."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..atomic_files import whole_file
from ..errors import InputError
from ..method.idf import DocumentFrequency
from ..method.token_statistics import TokenStatistics, special_token_ids
from .tokenizer_identity import TokenizerIdentity, same_tokenizer, tokenizer_identity


@dataclass(frozen=True)
class Frequencies(DocumentFrequency):
    """Counts of captions and what they were counted of; captions without any token are not among them."""

    tokenizer: str
    vocabulary: str  # a fingerprint of tokens and their ids
    captions: str  # as --superclip-captions, and where the long one was
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
        """Returns these counts and those of more shards."""
        return replace(
            self,
            document_frequency=self.document_frequency + document_frequency,
            num_captions=self.num_captions + num_captions,
            shards=(*self.shards, *shards),
        )

    def check(self, tokenizer, what: str) -> None:
        """Raises InputError where the counts are of another tokenizer's tokens, or of no caption."""
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
    """Returns the counts in a file of `superclip frequencies`; InputError where it is none."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            return Frequencies(
                file.get_tensor("document_frequency"),
                int(file.get_tensor("num_captions")),
                about["tokenizer"],
                about["vocabulary"],
                about["captions"],
                tuple(json.loads(about["ignored_tokens"])),
                tuple(json.loads(about["shards"])),
            )
    except (OSError, SafetensorError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} is no file of word frequencies that superclip frequencies wrote ({reason})"
        ) from error


def merge(parts: list[Frequencies], names: list[str]) -> Frequencies:
    """Returns the sum of counts of different shards; InputError where two were counted otherwise or share a shard."""
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


def count(captions: Iterable[list[str]], tokenizer, vocab_size: int) -> tuple[Tensor, int]:
    """Returns how many of the captions, given in batches, hold each token (int64 [V]), and how many hold any."""
    statistics = TokenStatistics(vocab_size, special_token_ids(tokenizer))
    for batch in captions:
        statistics.update(tokenizer(batch))
    return statistics.document_frequency, int(statistics.num_captions)
