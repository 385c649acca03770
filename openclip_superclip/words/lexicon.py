"""Words as the tokens that spell them: one token for most, several for those that the tokenizer cuts."""

import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from ..data.captions import END_OF_WORD
from ..errors import InputError, listed
from ..method.token_statistics import special_token_ids

SHORTEST = 3  # letters: what is shorter is nearly always the end of a longer word
CHUNK = 4096  # words tokenised at once


class Lexicon(NamedTuple):
    """N words and their tokens."""

    words: list[str]
    tokens: Tensor  # int64 [N, L], each word's own ids, filled up with V
    vocab_size: int  # V


def open_lexicon(tokenizer: Callable, vocab_size: int) -> Lexicon:
    """Returns the words that nobody had to choose: the tokenizer's own whole words, and those of CLIP's vocabulary.

    The latter stand for a dictionary, of some 32 thousand words that captions of the web are made of: a tokenizer that
    does not hold one whole spells it in parts.
    """
    if isinstance(tokenizer, SimpleTokenizer):
        spelled = _words_of_clip(tokenizer, vocab_size)
    else:
        spelled = _words_of_others(tokenizer, vocab_size)
    others = sorted(_words_of_clip(SimpleTokenizer()).keys() - spelled.keys())
    return _table(spelled | dict(zip(others, _spell(others, tokenizer, vocab_size), strict=True)), vocab_size)


def chosen_lexicon(flag: str, tokenizer: Callable, vocab_size: int) -> Lexicon:
    """Returns the words and phrases of --words: a list with commas, or a file with one a line."""
    words = list(dict.fromkeys(" ".join(line.split()) for line in _lines(flag) if line.strip()))
    if not words:
        raise InputError(f"--words is '{flag}'; expected words with commas between them, or a file with one a line")
    chosen = lexicon(words, tokenizer, vocab_size)
    unknown = [word for word in words if word not in chosen.words]
    if unknown:
        raise InputError(f"--words: the model's tokenizer has no tokens for {listed(unknown)}")
    return lexicon(_distinct(chosen), tokenizer, vocab_size)


def _lines(flag: str) -> list[str]:
    """Returns a file's lines or a list's words; InputError for a file that is not there."""
    if os.path.isfile(flag):
        try:
            return Path(flag).read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--words: {flag} cannot be read as text ({error})") from error
    if "," not in flag and re.search(r"\.\w+$|[/\\]", flag):
        raise InputError(f"--words: there is no file {flag}; a word that looks like one ends with a comma: '{flag},'")
    return flag.split(",")


def _distinct(chosen: Lexicon) -> list[str]:
    """Returns the words without those that differ by capital letters alone, which the tokenizer does not tell apart."""
    first = {}
    for word, ids in zip(chosen.words, chosen.tokens.tolist(), strict=True):
        first.setdefault((word.casefold(), *ids), word)
    return list(first.values())


def lexicon(words: list[str], tokenizer: Callable, vocab_size: int) -> Lexicon:
    """Returns the words that the tokenizer can spell; phrases are words too."""
    return _table(dict(zip(words, _spell(words, tokenizer, vocab_size), strict=True)), vocab_size)


def _table(spelled: dict[str, list[int]], vocab_size: int) -> Lexicon:
    spelled = {word: ids for word, ids in spelled.items() if ids}
    longest = max(map(len, spelled.values()), default=1)
    rows = [[*ids, *[vocab_size] * (longest - len(ids))] for ids in spelled.values()]
    return Lexicon(list(spelled), torch.tensor(rows, dtype=torch.int64).view(-1, longest), vocab_size)


def _spell(words: list[str], tokenizer: Callable, vocab_size: int) -> list[list[int]]:
    """Returns each word's ids, each id once, as the class loss counts them; none where a part of it is unknown."""
    special = set(special_token_ids(tokenizer))
    if isinstance(tokenizer, SimpleTokenizer):
        rows = map(tokenizer.encode, words)
        unknown = set()
    else:
        chunks = (tokenizer(words[start : start + CHUNK]).tolist() for start in range(0, len(words), CHUNK))
        rows = itertools.chain.from_iterable(chunks)
        unknown = _unknown_ids(tokenizer.tokenizer)
    ids = ([] if unknown.intersection(row) else [id for id in dict.fromkeys(row) if id not in special] for row in rows)
    return [word if max(word, default=0) < vocab_size else [] for word in ids]


def _unknown_ids(inner: Callable) -> set[int]:
    """Returns the id of what a Hugging Face tokenizer cannot spell; some use the id that ends a text."""
    return {inner.unk_token_id} - {inner.eos_token_id, inner.bos_token_id, inner.pad_token_id}


def _words_of_clip(tokenizer: SimpleTokenizer, vocab_size: int | None = None) -> dict[str, list[int]]:
    """Returns the words that are one token of OpenCLIP's own tokenizer each, with that token."""
    ids = [id for text, id in tokenizer.encoder.items() if text.endswith(END_OF_WORD)]
    words = {tokenizer.decode([id]).strip(): [id] for id in ids if vocab_size is None or id < vocab_size}
    return {word: ids for word, ids in words.items() if _is_word(word)}


def _words_of_others(tokenizer: Callable, vocab_size: int) -> dict[str, list[int]]:
    """Returns the words that a Hugging Face tokenizer spells with one token, in small letters."""
    inner = tokenizer.tokenizer
    texts = inner.batch_decode([[token] for token in range(min(vocab_size, len(inner)))])
    candidates = sorted({text.strip().lower() for text in texts if _is_word(text.strip())})
    spelled = zip(candidates, _spell(candidates, tokenizer, vocab_size), strict=True)
    return {word: ids for word, ids in spelled if len(ids) == 1}


def _is_word(text: str) -> bool:
    return text.isalpha() and len(text) >= SHORTEST
