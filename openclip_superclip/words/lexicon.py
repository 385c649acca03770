"""Which tokens spell each word, and the probabilities of words from those of their tokens."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from ..data.captions import vocabulary
from ..errors import InputError, listed, reason
from ..method.idf import special_token_ids

SHORTEST_WORD = 3  # letters: shorter tokens are almost always the end of a longer word
TEXT_FILES = (".txt", ".csv", ".tsv")
CHUNK = 4096  # words tokenized at once


class Lexicon(NamedTuple):
    """N words and their tokens."""

    words: list[str]
    tokens: Tensor  # int64 [N, L], the ids of each word, padded with V, the size of the vocabulary


def _lexicon(ids: dict[str, list[int]], vocab_size: int) -> Lexicon:
    """Returns the lexicon of words with these tokens."""
    longest = max(map(len, ids.values()), default=1)
    rows = [row + [vocab_size] * (longest - len(row)) for row in ids.values()]
    tokens = torch.tensor(rows, dtype=torch.int64).view(-1, longest)
    return Lexicon(list(ids), tokens)


def open_lexicon(tokenizer: Callable, vocab_size: int) -> Lexicon:
    """Returns the words that are single tokens of the tokenizer, about 32,000 for CLIP's
    vocabulary."""
    decode = getattr(tokenizer, "tokenizer", tokenizer).decode
    ids = sorted(id for id in vocabulary(tokenizer).values() if id < vocab_size)
    texts = dict.fromkeys(decode([id]).strip().lower() for id in ids)
    words = [text for text in texts if text.isalpha() and len(text) >= SHORTEST_WORD]
    # the text of a token that only continues words has other tokens
    spelled = zip(words, _spell(words, tokenizer, vocab_size), strict=True)
    return _lexicon({word: row for word, row in spelled if len(row) == 1}, vocab_size)


def chosen_lexicon(flag: str, tokenizer: Callable, vocab_size: int) -> Lexicon:
    """Returns the words and phrases of --words, a comma-separated list or a file with one per
    line."""
    lines = flag.split(",")
    is_name = len(lines) == 1 and (os.sep in flag or Path(flag).suffix in TEXT_FILES)
    if is_name and not os.path.exists(flag):
        raise InputError(f"--words: there is no file {flag}")
    if os.path.isfile(flag):
        try:
            lines = Path(flag).read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--words: {flag} cannot be read as text ({reason(error)})") from error
    words = [" ".join(line.split()) for line in lines if line.strip()]
    if not words:
        raise InputError(
            f"--words is '{flag}'; expected words separated by commas, or a file with one per line"
        )
    chosen = lexicon(words, tokenizer, vocab_size)
    unknown = [word for word in words if word not in chosen.words]
    if unknown:
        raise InputError(f"--words: the model's tokenizer has no tokens for {listed(unknown)}")
    return chosen


def seen_words(lexicon: Lexicon, document_frequency: Tensor) -> Lexicon:
    """Returns the words whose tokens are all in training captions.

    `document_frequency`, int64 [V], is the number of captions with each token.
    """
    is_seen = F.pad(document_frequency > 0, (0, 1), value=True)  # [V + 1], with the padding
    rows = is_seen[lexicon.tokens].all(dim=1)  # [N]
    words = [lexicon.words[row] for row in rows.nonzero().flatten().tolist()]
    return Lexicon(words, lexicon.tokens[rows])


def lexicon(words: list[str], tokenizer: Callable, vocab_size: int) -> Lexicon:
    """Returns the words and phrases that the tokenizer has tokens for, as spelled after a space."""
    spelled = zip(words, _spell(words, tokenizer, vocab_size), strict=True)
    return _lexicon({word: row for word, row in spelled if row}, vocab_size)


def _start_differs(tokenizer: Callable) -> bool:
    """Returns whether a word at the start of a caption has other tokens, as with RoBERTa's and
    Gemma's tokenizers."""
    if isinstance(tokenizer, SimpleTokenizer):
        return False
    return len(set(tokenizer.tokenizer.tokenize("a a"))) > 1


def _spell(words: list[str], tokenizer: Callable, vocab_size: int) -> Iterator[list[int]]:
    """Yields the distinct token ids of each word, as the class loss counts them; [] if a part
    of it is unknown."""
    special = set(special_token_ids(tokenizer))
    unknown = set()
    num_before = 0
    if isinstance(tokenizer, SimpleTokenizer):
        rows = map(tokenizer.encode, words)
    else:
        inner = tokenizer.tokenizer  # some tokenizers use the unknown token as the end token, too
        ends = {inner.eos_token_id, inner.bos_token_id, inner.pad_token_id}
        unknown = {inner.unk_token_id} - ends
        if _start_differs(tokenizer):
            words = [f"a {word}" for word in words]
            num_before = len(inner.tokenize("a"))
        rows = (
            row
            for start in range(0, len(words), CHUNK)
            for row in tokenizer(words[start : start + CHUNK]).tolist()
        )
    for row in rows:
        ids = [id for id in row if id not in special][num_before:]
        is_known = unknown.isdisjoint(row) and max(ids, default=0) < vocab_size
        yield list(dict.fromkeys(ids)) if is_known else []


class WordProbabilities:
    """Computes the probability of each word from the probabilities of tokens.

    The head is trained to predict ŷ, the distribution of the caption's tokens in proportion to
    their IDF weights w; p = softmax(logits) estimates it. The score of a word with one token is p
    of that token. The score of a word with several tokens c is min(p_c / w_c) · Σ w_c. This is Σ
    p_c if the tokens occur in the word's own proportions; probability in excess of these is
    attributed to other words. Tokens of weight 0, which every caption contains, carry no
    information and are ignored. `weights` are w [V].
    """

    def __init__(self, lexicon: Lexicon, weights: Tensor):
        self.blank = len(weights)
        self.weights = torch.cat([weights, weights.new_zeros(1)])  # [V + 1], 0 for the blank
        tokens = lexicon.tokens.to(weights.device)
        self.tokens = tokens.where(self.weights[tokens] > 0, self.blank)  # [N, L]
        self.totals = self.weights[self.tokens].sum(dim=1)  # [N]

    def of(self, probabilities: Tensor, words: Tensor | slice = slice(None)) -> Tensor:
        """Returns the scores of words [..., N], given the probabilities of tokens [..., V]."""
        tokens = self.tokens[words]
        # [..., N, L]
        per_weight = probabilities[..., tokens.clamp_max(self.blank - 1)] / self.weights[tokens]
        least = per_weight.masked_fill(tokens == self.blank, torch.inf).amin(dim=-1)
        return (least * self.totals[words]).nan_to_num(nan=0.0)
