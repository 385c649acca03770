"""How far a picture speaks for each word of a caption: the share that the head gives it, beside what it expects."""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..method.patch_tokens import encode_image
from ..words.lexicon import Lexicon, lexicon, open_lexicon
from ..words.tagger import Opened, Shares

WORD = re.compile(r"[^\W_]+")  # letters and digits: commas, quotes and hyphens stand between words


def words_of(caption: str) -> list[str]:
    """Returns the different words of a caption in their order, as they stand; capitals make no other word."""
    first: dict[str, str] = {}
    for word in WORD.findall(caption):
        first.setdefault(word.casefold(), word)
    return list(first.values())


def normalised(captions: Iterable[str]) -> list[str]:
    """Returns each caption's words by the alphabet: equal for captions that differ by order, case and marks alone."""
    return [" ".join(sorted(word.casefold() for word in WORD.findall(caption))) for caption in captions]


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


class Seen(NamedTuple):
    """What a model sees in pictures."""

    image_features: Tensor  # [B, E], normalised
    log_probabilities: Tensor | None  # [B, V], of the words that the head expects; None without a head


class PairScore(NamedTuple):
    """What a model says of a pair. All but the CLIP score are None or empty where it has no head."""

    clip_score: float | None  # cosine of the image and text features; None where it was not asked for
    class_loss: float | None = None  # None of a caption without a word that the head counts
    support: float | None = None  # 1 where the head expects just this caption, 0 where it tells nothing of it
    words: Sequence[WordSupport] = ()
    offered: Sequence[WordSupport] = ()  # what the caption lacks


class PairScorer:
    """Scores pairs with one model; where it has a class head, word by word.

    The class loss is the training's own, with the IDF weights w that the checkpoint's counts give:
    −Σ ŷ_t log p_t, p = softmax(logits) and ŷ_t = w_t / Σ w over the caption's tokens. It is the higher, the more words
    a caption has and the rarer they are. The support of a pair is free of both: Σ ŷ_t log(p_t / e_t) over
    Σ ŷ_t log(ŷ_t / e_t), e_t the share to expect without the picture (`CaptionSupport`), of the tokens that the head
    has learned. It is 1 where the head expects just this caption, 0 where the picture tells nothing of it, and below 0
    where the picture speaks against it.
    """

    def __init__(self, opened: Opened):
        self.opened, self.device = opened, next(opened.model.parameters()).device
        self.has_head = opened.token_weights is not None
        if not self.has_head:
            return
        counts = opened.model.statistics
        if not counts.document_frequency.any():
            raise InputError(
                "--model holds a class head without counts of words, which say how often to expect each: give a "
                "training checkpoint"
            )
        self.weights = opened.token_weights.float().to(self.device)
        self.captions = CaptionSupport(opened.tokenizer, self.weights, counts.document_frequency)

    @torch.inference_mode()
    def see(self, pictures: Tensor) -> Seen:
        """Returns what the model sees in preprocessed pictures [B, 3, H, W]."""
        model, pictures = self.opened.model, pictures.to(self.device)
        if not self.has_head:
            return Seen(model.encode_image(pictures, normalize=True).float(), None)
        features, head_input = encode_image(model.visual, model.patch_tokens, pictures, model.class_head.reads)
        logits = model.class_head.logits(head_input).float()  # [B, V]
        return Seen(F.normalize(features.float(), dim=-1), logits.log_softmax(dim=1))

    @torch.inference_mode()
    def score(self, seen: Seen, captions: Sequence[str], clip_score: bool = True) -> list[PairScore]:
        """Returns the scores of pictures with captions, one for each.

        Args:
            clip_score: whether the text tower is asked for it.
        """
        tokens = self.opened.tokenizer(list(captions)).to(self.device)  # [B, L]
        cosines = self._cosines(seen, tokens) if clip_score else [None] * len(captions)
        if not self.has_head:
            return [PairScore(cosine) for cosine in cosines]
        losses, supports = self._losses(seen.log_probabilities, tokens)
        probabilities = seen.log_probabilities.exp()
        words = self.captions.words(probabilities, captions, tokens)
        offered = self.captions.missing(probabilities, tokens)
        rows = zip(cosines, losses.tolist(), supports.tolist(), words, offered, strict=True)
        return [PairScore(cosine, _number(loss), _number(support), *more) for cosine, loss, support, *more in rows]

    def _cosines(self, seen: Seen, tokens: Tensor) -> list[float]:
        text_features = self.opened.model.encode_text(tokens, normalize=True).float()
        return (seen.image_features * text_features).sum(dim=1).tolist()

    def _losses(self, log_probabilities: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Returns class losses and supports, float32 [B]; NaN where a caption has no word for them."""
        labels = torch.zeros_like(log_probabilities).scatter_(1, tokens, 1.0)  # [B, V]
        weighed, learned = labels * self.weights, labels * self.weights * self.captions.known
        target = F.normalize(weighed, p=1, dim=1)
        losses = -(target * log_probabilities).sum(dim=1)
        target = F.normalize(learned, p=1, dim=1)
        log_expected = self.captions.expected.clamp_min(LEAST).log()
        gained = (target * (log_probabilities - log_expected)).sum(dim=1)
        most = (target * (target.clamp_min(LEAST).log() - log_expected)).sum(dim=1).clamp_min(LEAST)
        return (
            losses.masked_fill(weighed.sum(dim=1) == 0, math.nan),
            (gained / most).masked_fill(learned.sum(dim=1) == 0, math.nan),
        )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
