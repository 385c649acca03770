"""Maps words to the tokens that spell them."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from ..data.captions import token_texts
from ..errors import InputError, listed, reason
from ..method.idf import special_token_ids

SHORTEST = 3  # letters: shorter tokens are almost always the end of a longer word
CHUNK = 4096  # words tokenized at once


class Lexicon(NamedTuple):
    """N words and their tokens."""

    words: list[str]
    tokens: Tensor  # int64 [N, L], the ids of each word, padded with V
    vocab_size: int  # V


def open_lexicon(tokenizer: Callable, vocab_size: int) -> Lexicon:
    """Returns the words that are single tokens of the tokenizer, about 32,000 for CLIP's vocabulary."""
    texts = enumerate(token_texts(tokenizer, vocab_size))
    words = {text.lower(): [id] for id, text in texts if text.isalpha() and len(text) >= SHORTEST}
    if isinstance(tokenizer, SimpleTokenizer):  # its texts mark parts of words
        return Lexicon(list(words), torch.tensor(list(words.values()), dtype=torch.int64).view(-1, 1), vocab_size)
    every = lexicon(list(words), tokenizer, vocab_size)
    is_single = (every.tokens < vocab_size).sum(dim=1) == 1
    return Lexicon(list(itertools.compress(every.words, is_single)), every.tokens[is_single, :1], vocab_size)


def chosen_lexicon(flag: str, tokenizer: Callable, vocab_size: int) -> Lexicon:
    """Returns the words and phrases of --words, a comma-separated list or a file with one per line."""
    try:
        lines = Path(flag).read_text("utf-8-sig").splitlines() if os.path.isfile(flag) else flag.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--words: {flag} cannot be read as text ({reason(error)})") from error
    words = [" ".join(line.split()) for line in lines if line.strip()]
    if not words:
        raise InputError(f"--words is '{flag}'; expected words separated by commas, or a file with one per line")
    chosen = lexicon(words, tokenizer, vocab_size)
    if unknown := [word for word in words if word not in chosen.words]:
        raise InputError(f"--words: the model's tokenizer has no tokens for {listed(unknown)}")
    return chosen


def lexicon(words: list[str], tokenizer: Callable, vocab_size: int, at_start: bool = False) -> Lexicon:
    """Returns the words and phrases that the tokenizer has tokens for, as spelled after a space or at the start."""
    found = {word: ids for word, ids in zip(words, _spell(words, tokenizer, vocab_size, at_start), strict=True) if ids}
    longest = max(map(len, found.values()), default=1)
    rows = [[*ids, *[vocab_size] * (longest - len(ids))] for ids in found.values()]
    return Lexicon(list(found), torch.tensor(rows, dtype=torch.int64).view(-1, longest), vocab_size)


def start_differs(tokenizer: Callable) -> bool:
    """Returns whether a word at the start of a caption has other tokens, as with RoBERTa's and Gemma's tokenizers."""
    return not isinstance(tokenizer, SimpleTokenizer) and len(set(tokenizer.tokenizer.tokenize("a a"))) > 1


def _spell(words: list[str], tokenizer: Callable, vocab_size: int, at_start: bool) -> list[list[int]]:
    """Returns the distinct token ids of each word, as the class loss counts them; [] if a part of it is unknown."""
    special, unknown, num_before = set(special_token_ids(tokenizer)), set(), 0
    if isinstance(tokenizer, SimpleTokenizer):
        rows = map(tokenizer.encode, words)
    else:
        inner = tokenizer.tokenizer  # some tokenizers use the unknown token as the end token, too
        if not at_start and start_differs(tokenizer):
            words, num_before = [f"a {word}" for word in words], len(inner.tokenize("a"))
        chunks = (tokenizer(words[start : start + CHUNK]).tolist() for start in range(0, len(words), CHUNK))
        rows = itertools.chain.from_iterable(chunks)
        unknown = {inner.unk_token_id} - {inner.eos_token_id, inner.bos_token_id, inner.pad_token_id}
    ids = ([] if unknown.intersection(row) else [id for id in row if id not in special][num_before:] for row in rows)
    return [list(dict.fromkeys(word)) if max(word, default=0) < vocab_size else [] for word in ids]
