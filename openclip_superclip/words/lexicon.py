"""Maps words to the tokens that spell them."""

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
from ..errors import InputError, listed, reason
from ..method.token_statistics import special_token_ids

SHORTEST = 3  # letters: shorter tokens are almost always the end of a longer word
CHUNK = 4096  # words tokenized at once


class Lexicon(NamedTuple):
    """N words and their tokens."""

    words: list[str]
    tokens: Tensor  # int64 [N, L], the ids of each word, padded with V
    vocab_size: int  # V


def open_lexicon(tokenizer: Callable, vocab_size: int) -> Lexicon:
    """Returns the words that are single tokens of the tokenizer, plus the words of CLIP's vocabulary.

    CLIP's vocabulary serves as a dictionary of about 32,000 words that occur in web captions. Other tokenizers may
    split these words into several tokens.
    """
    if isinstance(tokenizer, SimpleTokenizer):
        spelled = _words_of_clip(tokenizer, vocab_size)
    else:
        inner = tokenizer.tokenizer
        texts = inner.batch_decode([[token] for token in range(min(vocab_size, len(inner)))])
        whole = sorted({text.strip().lower() for text in texts if _is_word(text.strip())})
        found = zip(whole, _spell(whole, tokenizer, vocab_size), strict=True)
        spelled = {word: ids for word, ids in found if len(ids) == 1}
    others = sorted(_words_of_clip(SimpleTokenizer()).keys() - spelled.keys())
    return _table(spelled | dict(zip(others, _spell(others, tokenizer, vocab_size), strict=True)), vocab_size)


def chosen_lexicon(flag: str, tokenizer: Callable, vocab_size: int) -> Lexicon:
    """Returns the words and phrases of --words, a comma-separated list or a file with one per line."""
    if os.path.isfile(flag):
        try:
            lines = Path(flag).read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--words: {flag} cannot be read as text ({reason(error)})") from error
    elif "," not in flag and re.search(r"\.\w+$|[/\\]", flag):
        raise InputError(f"--words: there is no file {flag}; end a word that looks like one with a comma: '{flag},'")
    else:
        lines = flag.split(",")
    words = list(dict.fromkeys(" ".join(line.split()) for line in lines if line.strip()))
    if not words:
        raise InputError(f"--words is '{flag}'; expected words separated by commas, or a file with one per line")
    chosen = lexicon(words, tokenizer, vocab_size)
    unknown = [word for word in words if word not in chosen.words]
    if unknown:
        raise InputError(f"--words: the model's tokenizer has no tokens for {listed(unknown)}")
    first = {}  # the tokenizer ignores case: keep one spelling of each word
    for word, ids in zip(chosen.words, chosen.tokens.tolist(), strict=True):
        first.setdefault((word.casefold(), *ids), word)
    return lexicon(list(first.values()), tokenizer, vocab_size)


def lexicon(words: list[str], tokenizer: Callable, vocab_size: int) -> Lexicon:
    """Returns the words and phrases that the tokenizer has tokens for."""
    return _table(dict(zip(words, _spell(words, tokenizer, vocab_size), strict=True)), vocab_size)


def _table(spelled: dict[str, list[int]], vocab_size: int) -> Lexicon:
    spelled = {word: ids for word, ids in spelled.items() if ids}
    longest = max(map(len, spelled.values()), default=1)
    rows = [[*ids, *[vocab_size] * (longest - len(ids))] for ids in spelled.values()]
    return Lexicon(list(spelled), torch.tensor(rows, dtype=torch.int64).view(-1, longest), vocab_size)


def _spell(words: list[str], tokenizer: Callable, vocab_size: int) -> list[list[int]]:
    """Returns the distinct token ids of each word, as the class loss counts them; [] if a part of it is unknown."""
    special, unknown = set(special_token_ids(tokenizer)), set()
    if isinstance(tokenizer, SimpleTokenizer):
        rows = map(tokenizer.encode, words)
    else:
        chunks = (tokenizer(words[start : start + CHUNK]).tolist() for start in range(0, len(words), CHUNK))
        rows = itertools.chain.from_iterable(chunks)
        inner = tokenizer.tokenizer  # some tokenizers use the unknown token as the end token, too
        unknown = {inner.unk_token_id} - {inner.eos_token_id, inner.bos_token_id, inner.pad_token_id}
    ids = ([] if unknown.intersection(row) else [id for id in dict.fromkeys(row) if id not in special] for row in rows)
    return [word if max(word, default=0) < vocab_size else [] for word in ids]


def _words_of_clip(tokenizer: SimpleTokenizer, vocab_size: int | None = None) -> dict[str, list[int]]:
    """Returns the words that are a single token of OpenCLIP's own tokenizer, each with its id."""
    ids = [id for text, id in tokenizer.encoder.items() if text.endswith(END_OF_WORD)]
    words = {tokenizer.decode([id]).strip(): [id] for id in ids if vocab_size is None or id < vocab_size}
    return {word: ids for word, ids in words.items() if _is_word(word)}


def _is_word(text: str) -> bool:
    return text.isalpha() and len(text) >= SHORTEST
