"""How far a picture speaks for each word of a caption: the share that the head gives it, beside what it expects."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..tagging.lexicon import Lexicon, lexicon, open_lexicon
from ..tagging.word_scores import Shares
from .caption_words import words_of

NUM_OFFERED = 5  # words that a caption lacks
GATHERED = 2**24  # probabilities looked up at once
LEAST = 1e-12  # of a share: what is below has no logarithm that means anything


class WordSupport(NamedTuple):
    """A word of a caption."""

    word: str  # in small letters
    share: float  # of the caption that the head expects for the picture, 0 to 1
    expected: float  # the same of a picture of which nothing is known
    support: float  # log2(share / expected): 0 says nothing, below 0 the picture speaks against the word


class CaptionSupport:
    """Looks up the words of captions in what the head expects for their pictures.

    The head is trained to predict the IDF-weighted words of a caption, of which every token t has the weight w_t. Over
    the data that it learned from, token t makes up df_t · w_t / Σ df · w of all captions: that is the share to expect
    of it where nothing is known of the picture, and it comes with the checkpoint. A rare word has a small share and a
    small expectation, so that its support is no lower for its being rare. Words of several tokens are as in `Shares`.

    A word that the head has seen in no caption, or in every one, has no support; neither has one that the text tower's
    context cuts off.

    Args:
        tokenizer: OpenCLIP's.
        weights: w [V], the IDF that the head was trained with.
        document_frequency: int64 [V], df.
    """

    def __init__(self, tokenizer: Callable, weights: Tensor, document_frequency: Tensor):
        self.tokenizer, self.weights = tokenizer, weights.float()
        self.known = (document_frequency > 0) & (weights > 0)  # [V]
        mass = document_frequency.double().cpu() * weights.double().cpu()  # not every accelerator has float64
        self.expected = (mass / mass.sum()).to(self.weights)  # [V], sums to 1
        every = self._on_device(open_lexicon(tokenizer, len(weights)))
        self.lexicon = _chosen(every, self._is_known(every))
        self.offered = Shares(self.lexicon, self.weights)
        self.offered_expected = self.offered.of(self.expected)  # [N]

    def words(self, probabilities: Tensor, captions: Sequence[str], tokens: Tensor) -> list[list[WordSupport]]:
        """Returns the words of each caption that have support, in their order.

        Args:
            probabilities: [B, V], of the pictures.
            tokens: [B, L], of the captions.
        """
        words = [words_of(caption) for caption in captions]
        of_all = sorted({word for of in words for word in of})
        spelled = self._on_device(lexicon(of_all, self.tokenizer, len(self.weights)))
        if not spelled.words:
            return [[] for _ in captions]
        places = dict(zip(spelled.words, range(len(spelled.words)), strict=True))
        asked = [(row, places[word]) for row, of in enumerate(words) for word in of if word in places]
        rows, asked = torch.tensor(asked, device=tokens.device).view(-1, 2).T
        present = _present(tokens, len(self.weights))[rows[:, None], spelled.tokens[asked]].all(dim=1)
        rows, asked = (kept[present & self._is_known(spelled)[asked]] for kept in (rows, asked))
        shares = Shares(spelled, self.weights)
        share, expected = shares.of_each(probabilities, rows, asked), shares.of(self.expected)[asked]
        found: list[list[WordSupport]] = [[] for _ in captions]
        for row, place, *values in zip(*(of.tolist() for of in (rows, asked, share, expected)), strict=True):
            found[row].append(word_support(spelled.words[place].casefold(), *values))
        return found

    def missing(self, probabilities: Tensor, tokens: Tensor) -> list[list[WordSupport]]:
        """Returns for each picture the words of highest share that its caption, tokens [B, L], has no part of.

        Of all words that the tokenizer holds whole and the head has seen, those that the picture speaks for.
        """
        if not self.lexicon.words:
            return [[] for _ in tokens]
        present, found = _present(tokens, len(self.weights), blank=False), []
        rows = max(1, GATHERED // self.lexicon.tokens.numel())
        for start in range(0, len(tokens), rows):
            here = slice(start, start + rows)
            shares = self.offered.of(probabilities[here])  # [R, N]
            there = present[here][:, self.lexicon.tokens].any(dim=-1)
            shares = shares.masked_fill(there | (shares <= self.offered_expected), 0.0)
            best = shares.topk(min(NUM_OFFERED, shares.shape[1]), dim=1)
            for values, places in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                found.append([
                    word_support(self.lexicon.words[place], value, self.offered_expected[place].item())
                    for value, place in zip(values, places, strict=True)
                    if value > 0
                ])  # fmt: skip
        return found

    def _on_device(self, of: Lexicon) -> Lexicon:
        return of._replace(tokens=of.tokens.to(self.weights.device))

    def _is_known(self, of: Lexicon) -> Tensor:
        """Returns whether the head has learned every token of each word, bool [N]."""
        known = torch.cat([self.known, self.known.new_ones(1)])  # the blank
        return known[of.tokens].all(dim=1)


def word_support(word: str, share: float, expected: float) -> WordSupport:
    """Returns a word with the doublings from its expectation to its share."""
    return WordSupport(word, share, expected, math.log2(max(share, LEAST) / max(expected, LEAST)))


def _chosen(of: Lexicon, rows: Tensor) -> Lexicon:
    """Returns the words of a lexicon whose rows [N] are true."""
    words = list(itertools.compress(of.words, rows.tolist()))
    tokens = of.tokens[rows]
    longest = max(1, int((tokens != of.vocab_size).sum(dim=1).max())) if len(words) else 1
    return Lexicon(words, tokens[:, :longest], of.vocab_size)


def _present(tokens: Tensor, vocab_size: int, blank: bool = True) -> Tensor:
    """Returns which tokens each caption [B, L] holds, bool [B, V + 1]; the last column is the blank's."""
    present = torch.zeros(len(tokens), vocab_size + 1, dtype=torch.bool, device=tokens.device)
    present.scatter_(1, tokens, True)
    present[:, -1] = blank
    return present
