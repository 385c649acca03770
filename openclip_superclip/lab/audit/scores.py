"""Scores how well an image supports each word of its caption; reads the scores of an audit and
ranks its pairs."""

import itertools
import json
import math
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import InputError
from ...method.head_input import encode_image
from ..words.tagger import Lexicon, Opened, WordProbabilities, lexicon, open_lexicon, start_differs

WORD = re.compile(r"[^\W_]+")  # letters and digits; commas, quotes and hyphens separate words
NUM_OFFERED = 5  # suggested words per caption
# of a suggested word: its probability given the image, divided by the expected one
LEAST_LIFT = 1.5
LEAST = 1e-12  # probabilities are clamped to this minimum before logarithms
SCORES = ("class_loss", "support", "clip_score")


def words_of(caption: str) -> list[str]:
    """Returns the distinct words of a caption, ignoring case, in order of appearance."""
    first: dict[str, str] = {}
    for word in WORD.findall(caption):
        first.setdefault(word.casefold(), word)
    return list(first.values())


class WordSupport(NamedTuple):
    """A word of a caption."""

    word: str  # in lower case
    share: float  # probability of the word given the image
    expected: float  # probability of the word without knowledge of the image
    support: float  # log2(share / expected): negative if the image is evidence against the word


class CaptionSupport:
    """Computes the support of each word of a caption from the class head's probabilities for the
    image.

    The head is trained to predict the IDF-weighted tokens of a caption. Over the training data,
    token t has the fraction e_t = df_t · w_t / Σ df · w of the total weight. This is its expected
    probability without knowledge of the image, computed from the counts in the checkpoint. Rare
    words have both a low probability and a low expected probability, so rarity alone does not lower
    their support. `WordProbabilities` scores words of several tokens.

    Support is undefined for words that no training caption or every training caption contains, and
    for words beyond the context length of the text tower.

    `weights`, w [V], are the IDF weights of training; `document_frequency`, int64 [V], is df.
    """

    def __init__(self, tokenizer: Callable, weights: Tensor, document_frequency: Tensor):
        self.tokenizer, self.weights = tokenizer, weights.float()
        self.known = (document_frequency > 0) & (weights > 0)  # [V]
        # not every accelerator has float64
        mass = document_frequency.double().cpu() * weights.double().cpu()
        self.expected = (mass / mass.sum()).to(self.weights)  # [V], sums to 1
        every = open_lexicon(tokenizer, len(weights))
        learned = self._is_known(every).cpu()
        words = list(itertools.compress(every.words, learned.tolist()))
        self.places = {word: place for place, word in enumerate(words)}
        self.offered = WordProbabilities(
            Lexicon(words, every.tokens[learned], every.vocab_size), self.weights
        )

    def words(
        self, probabilities: Tensor, captions: Sequence[str], tokens: Tensor
    ) -> list[list[WordSupport]]:
        """Returns the words of each caption, tokens [B, L], for which support is defined, in order
        of appearance.

        `probabilities`, [B, V], are those given the images.
        """
        words = [words_of(caption) for caption in captions]
        every, present = sorted(set().union(*words)), _present(tokens, len(self.weights))
        found: list[dict[str, WordSupport]] = [{} for _ in words]
        for at_start in (True, False) if start_differs(self.tokenizer) else (False,):
            spelled = lexicon(every, self.tokenizer, len(self.weights), at_start)
            places = {word: place for place, word in enumerate(spelled.words)}
            shares, is_known = WordProbabilities(spelled, self.weights), self._is_known(spelled)
            expected = shares.of(self.expected)
            for row, of in enumerate(words):
                asked = torch.tensor(
                    [places[word] for word in of if word in places], device=tokens.device
                ).long()
                asked = asked[is_known[asked] & present[row, shares.tokens[asked]].all(dim=1)]
                names = [spelled.words[place] for place in asked.tolist()]
                values = shares.of(probabilities[row], asked).tolist(), expected[asked].tolist()
                found[row] |= zip(
                    names, map(word_support, map(str.casefold, names), *values), strict=True
                )
        return [
            [by_word[word] for word in of if word in by_word]
            for of, by_word in zip(words, found, strict=True)
        ]

    def missing(
        self, probabilities: Tensor, captions: Sequence[str], tokens: Tensor
    ) -> list[list[WordSupport]]:
        """Returns the most probable words that each caption, tokens [B, L], does not contain.

        Only words that the head has learned and that are LEAST_LIFT times as probable as expected
        are returned.
        """
        shares, expected, words = (
            self.offered.of(probabilities),
            self.offered.of(self.expected),
            list(self.places),
        )
        present = _present(tokens, len(self.weights))[:, self.offered.tokens].any(dim=2)
        for row, caption in enumerate(captions):  # where it starts, a word may have other tokens
            named = map(str.lower, words_of(caption))
            present[row, [self.places[word] for word in named if word in self.places]] = True
        best = shares.masked_fill(present | (shares < LEAST_LIFT * expected), 0.0).topk(
            min(NUM_OFFERED, len(words))
        )
        return [
            [
                word_support(words[place], value, expected[place].item())
                for value, place in pairs
                if value > 0
            ]
            for pairs in map(zip, best.values.tolist(), best.indices.tolist())
        ]

    def _is_known(self, of: Lexicon) -> Tensor:
        """Returns whether the head has learned all tokens of each word, bool [N]."""
        known = torch.cat([self.known, self.known.new_ones(1)])  # the blank
        return known[of.tokens.to(known.device)].all(dim=1)


def word_support(word: str, share: float, expected: float) -> WordSupport:
    return WordSupport(word, share, expected, math.log2(max(share, LEAST) / max(expected, LEAST)))


def _present(tokens: Tensor, vocab_size: int) -> Tensor:
    """Returns which tokens each caption [B, L] contains, bool [B, V + 1].

    The last column, the padding, is True."""
    present = torch.zeros(len(tokens), vocab_size + 1, dtype=torch.bool, device=tokens.device)
    present.scatter_(1, tokens, True)
    present[:, -1] = True
    return present


class Seen(NamedTuple):
    """A model's outputs for images."""

    image_features: Tensor  # [B, E], normalized
    log_probabilities: Tensor | None  # [B, V]; None without a head


class PairScore(NamedTuple):
    """The scores of a pair. Without a class head, all but the CLIP score are None or empty."""

    clip_score: float  # cosine similarity
    class_loss: float | None = None  # None if all tokens of the caption have weight 0
    support: float | None = None  # see PairScorer; None if the head has learned none of the tokens
    words: Sequence[WordSupport] = ()
    offered: Sequence[WordSupport] = ()  # suggested words that the caption does not contain


class PairScorer:
    """Scores pairs with a model, word by word if it has a class head.

    The class loss is the training loss −Σ ŷ_t log p_t, where p = softmax(logits), ŷ_t = w_t / Σ w
    over the caption's tokens, and w are the IDF weights from the checkpoint's counts. It increases
    with the number and rarity of words. The support of a pair is normalized for both. It is Σ ŷ_t
    log(p_t / e_t) / Σ ŷ_t log(ŷ_t / e_t) over the tokens that the head has learned, where e_t is
    the expected probability (see `CaptionSupport`). It is 1 if the head predicts exactly this
    caption, 0 if the image is uninformative, and negative if the image is evidence against the
    caption.
    """

    def __init__(self, opened: Opened):
        self.opened, self.device = opened, next(opened.model.parameters()).device
        self.has_head = opened.token_weights is not None
        if not self.has_head:
            return
        counts = opened.model.statistics
        if not counts.document_frequency.any():
            raise InputError(
                "--model has no word counts, which the expected probabilities require: give a "
                "training checkpoint"
            )
        self.weights = opened.token_weights.float().to(self.device)
        self.captions = CaptionSupport(opened.tokenizer, self.weights, counts.document_frequency)

    @torch.inference_mode()
    def see(self, images: Tensor) -> Seen:
        """Returns the model's outputs for preprocessed images [B, 3, H, W]."""
        model, images = self.opened.model, images.to(self.device)
        if not self.has_head:
            return Seen(model.encode_image(images, normalize=True).float(), None)
        features, _, head_input = encode_image(
            model.visual, model.patch_tokens, images, model.class_head.reads
        )
        logits = model.class_head.logits(head_input).float()  # [B, V]
        return Seen(F.normalize(features.float(), dim=-1), logits.log_softmax(dim=1))

    @torch.inference_mode()
    def score(self, seen: Seen, captions: Sequence[str]) -> list[PairScore]:
        """Returns the scores of each image with its caption."""
        tokens = self.opened.tokenizer(list(captions)).to(self.device)  # [B, L]
        text_features = self.opened.model.encode_text(tokens, normalize=True).float()
        cosines = (seen.image_features * text_features).sum(dim=1).tolist()
        if not self.has_head:
            return [PairScore(cosine) for cosine in cosines]
        losses, supports = (
            [None if math.isnan(value) else value for value in values.tolist()]
            for values in self._losses(seen.log_probabilities, tokens)
        )
        probabilities = seen.log_probabilities.exp()
        words = self.captions.words(probabilities, captions, tokens)
        offered = self.captions.missing(probabilities, captions, tokens)
        return list(map(PairScore, cosines, losses, supports, words, offered))

    def _losses(self, log_probabilities: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Returns class losses and supports, float32 [B], with NaN for None in PairScore."""
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


def read_scores(file: Path) -> Iterator[dict]:
    """Yields the records of a finished file."""
    with open(file, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except ValueError:
                raise InputError(
                    f"--out: line {number:,} of {file} is damaged: remove the file, and the "
                    "same command scores again"
                ) from None


class ScoredPairs:
    """The scores in a finished file, float32 [N] each by name; NaN for pairs without a score."""

    def __init__(self, file: Path):
        found = {name: array("f") for name in SCORES}
        # pairs by word and by problem
        self.counts, self.doubted, self.problems = Counter(), Counter(), Counter()
        for record in read_scores(file):
            for name, values in found.items():
                value = record.get(name)
                values.append(np.nan if value is None else value)
            for word in record.get("words", []):
                self.counts[word["word"]] += 1
                self.doubted[word["word"]] += word["support"] < 0
            if "problem" in record:
                self.problems[record["problem"].partition(" (")[0]] += 1
        self.scores = {
            name: np.frombuffer(values, dtype=np.float32) for name, values in found.items()
        }

    def finite(self, name: str) -> np.ndarray:
        """Returns the finite scores of that name."""
        return self.scores[name][np.isfinite(self.scores[name])]

    @property
    def suggestion(self) -> str:
        """A sentence that suggests a --keep: the fraction of pairs with support of at least 0;
        "" if it is extreme."""
        support = self.finite("support")
        doubtful = float((support < 0).mean()) if len(support) else 0.0
        if not 0.005 < doubtful < 0.9:
            return ""
        return (
            f"{doubtful:.1%} of the pairs have support below 0: --keep {1 - doubtful:.2f} "
            "is a starting point"
        )

    @property
    def warning(self) -> str:
        """A sentence that warns of a head without knowledge of the captions: the median support
        is negative; or ""."""
        support = self.finite("support")
        if not len(support) or np.median(support) >= 0:
            return ""
        return (
            f"The median support is {np.median(support):.2f}: the class head predicts these "
            "captions worse than the "
            "frequencies of their words do. Train it longer, or check that the images belong "
            "to the captions. Its suggestions are left out"
        )

    def goodness(self, by: str) -> np.ndarray:
        """Returns the values that sort the pairs, float64 [N], higher for better pairs; −∞ for
        pairs without a score.

        "both" is the mean of the ranks by support and by CLIP score; for pairs without support, the
        latter alone.
        """
        if by == "both":
            values = mean_of_ranks([self.scores["support"], self.scores["clip_score"]])
        else:
            values = self.scores[by.replace("-", "_")].astype(np.float64) * (
                -1 if by == "class-loss" else 1
            )
        return np.where(np.isnan(values), -np.inf, values)


def mean_of_ranks(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the mean rank of each pair over several scores [N], float64 [N].

    Ranks are fractions, 1 for the highest score. Missing scores (NaN) are ignored; the mean is NaN
    if all are missing.
    """
    return pandas.DataFrame(list(scores)).T.rank(pct=True).mean(axis=1).to_numpy()
