"""Scores how well an image supports each word of its caption, and the caption as a whole."""

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..method.head_input import encode_image
from ..words.lexicon import WordProbabilities, lexicon, open_lexicon, start_differs
from ..words.open_checkpoint import OpenedCheckpoint

WORD = re.compile(r"[^\W_]+")  # letters and digits; commas, quotes and hyphens separate words
NUM_OFFERED = 5  # suggested words per caption
# of a suggested word: its probability given the image, divided by the expected one
LEAST_LIFT = 1.5
LEAST = 1e-12  # probabilities are clamped to this minimum before logarithms


def words_of(caption: str) -> list[str]:
    """Returns the distinct words of a caption, ignoring case, in order of appearance."""
    first = {}
    for word in WORD.findall(caption):
        first.setdefault(word.casefold(), word)
    return list(first.values())


class WordSupport(NamedTuple):
    """A word of a caption."""

    word: str  # in lower case
    share: float  # probability of the word given the image
    expected: float  # probability of the word without knowledge of the image

    @property
    def support(self) -> float:
        """log2(share / expected): negative if the image is evidence against the word."""
        return math.log2(max(self.share, LEAST) / max(self.expected, LEAST))


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
        self.tokenizer = tokenizer
        self.weights = weights
        self.known = (document_frequency > 0) & (weights > 0)  # [V]
        # not every accelerator has float64
        mass = document_frequency.double().cpu() * weights.double().cpu()
        self.expected = (mass / mass.sum()).to(self.weights)  # [V], sums to 1
        every = open_lexicon(tokenizer, len(weights))
        self.index = {word: index for index, word in enumerate(every.words)}
        self.offered = WordProbabilities(every, weights)

    def words(
        self, probabilities: Tensor, captions: Sequence[str], tokens: Tensor
    ) -> list[list[WordSupport]]:
        """Returns the words of each caption, tokens [B, L], for which support is defined, in order
        of appearance.

        `probabilities`, [B, V], are those given the images.
        """
        supports = [dict.fromkeys(words_of(caption)) for caption in captions]
        every = sorted(set().union(*supports))
        learned = self._present(tokens)
        learned[:, :-1] &= self.known
        for at_start in (True, False) if start_differs(self.tokenizer) else (False,):
            spelled = lexicon(every, self.tokenizer, len(self.weights), at_start=at_start)
            scores = WordProbabilities(spelled, self.weights)
            shares = scores.of(probabilities).tolist()
            expected = scores.of(self.expected).tolist()
            is_defined = learned[:, spelled.tokens].all(dim=2)  # [B, N]
            for row, number in is_defined.nonzero().tolist():
                word = spelled.words[number]
                if word in supports[row]:
                    supports[row][word] = WordSupport(
                        word.casefold(), shares[row][number], expected[number]
                    )
        return [list(filter(None, by_word.values())) for by_word in supports]

    def missing(
        self, probabilities: Tensor, captions: Sequence[str], tokens: Tensor
    ) -> list[list[WordSupport]]:
        """Returns the most probable words that each caption, tokens [B, L], does not contain.

        Only words that the head has learned and that are LEAST_LIFT times as probable as expected
        are returned.
        """
        shares = self.offered.of(probabilities)
        expected = self.offered.of(self.expected)
        present = self._present(tokens)[:, self.offered.tokens].any(dim=2)
        for row, caption in enumerate(captions):  # where it starts, a word may have other tokens
            named = [word.lower() for word in words_of(caption)]
            present[row, [self.index[word] for word in named if word in self.index]] = True
        is_left_out = present | (expected == 0) | (shares < LEAST_LIFT * expected)
        best = shares.masked_fill(is_left_out, 0.0).topk(min(NUM_OFFERED, len(self.index)))
        words = list(self.index)
        offered = []
        for values, numbers in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            offered.append(
                [
                    WordSupport(words[number], share, expected[number].item())
                    for share, number in zip(values, numbers, strict=True)
                    if share > 0
                ]
            )
        return offered

    def _present(self, tokens: Tensor) -> Tensor:
        """Returns which tokens each caption [B, L] contains, bool [B, V + 1].

        The last column, the padding, is True."""
        shape = (len(tokens), len(self.weights) + 1)
        present = torch.zeros(shape, dtype=torch.bool, device=tokens.device)
        present.scatter_(1, tokens, value=True)
        present[:, -1] = True
        return present


class ModelOutputs(NamedTuple):
    """A model's outputs for images."""

    image_features: Tensor  # [B, E], normalized
    log_probabilities: Tensor | None  # [B, V]; None without a head


class PairScore(NamedTuple):
    """The scores of a pair. Without a class head, all but the CLIP score are NaN or empty."""

    clip_score: float  # cosine similarity
    class_loss: float = math.nan  # NaN if all tokens of the caption have weight 0
    support: float = math.nan  # see PairScorer; NaN if the head has learned none of the tokens
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

    def __init__(self, opened: OpenedCheckpoint):
        self.opened = opened
        self.device = next(opened.model.parameters()).device
        self.has_head = opened.token_weights is not None
        if not self.has_head:
            return
        document_frequency = opened.model.statistics.document_frequency
        if not document_frequency.any():
            raise InputError(
                "--model has no word counts, which the expected probabilities require: give a "
                "training checkpoint"
            )
        weights = opened.token_weights.to(self.device)
        self.captions = CaptionSupport(opened.tokenizer, weights, document_frequency)

    @torch.inference_mode()
    def see(self, images: Tensor) -> ModelOutputs:
        """Returns the model's outputs for preprocessed images [B, 3, H, W]."""
        model = self.opened.model
        images = images.to(self.device)
        if not self.has_head:
            return ModelOutputs(model.encode_image(images, normalize=True).float(), None)
        features, _, head_input = encode_image(
            model.visual, model.patch_tokens, images, model.class_head.reads
        )
        logits = model.class_head.logits(head_input).float()  # [B, V]
        return ModelOutputs(F.normalize(features.float(), dim=-1), logits.log_softmax(dim=1))

    @torch.inference_mode()
    def score(self, outputs: ModelOutputs, captions: Sequence[str]) -> list[PairScore]:
        """Returns the scores of each image with its caption."""
        tokens = self.opened.tokenizer(captions).to(self.device)  # [B, L]
        text_features = self.opened.model.encode_text(tokens, normalize=True).float()
        cosines = (outputs.image_features * text_features).sum(dim=1).tolist()
        if not self.has_head:
            return [PairScore(cosine) for cosine in cosines]
        losses, supports = self._losses(outputs.log_probabilities, tokens)
        probabilities = outputs.log_probabilities.exp()
        words = self.captions.words(probabilities, captions, tokens)
        offered = self.captions.missing(probabilities, captions, tokens)
        return list(map(PairScore, cosines, losses.tolist(), supports.tolist(), words, offered))

    def _losses(self, log_probabilities: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Returns class losses and supports, float32 [B], as in PairScore."""
        labels = torch.zeros_like(log_probabilities).scatter_(1, tokens, 1.0)  # [B, V]
        weighted = labels * self.captions.weights
        target = F.normalize(weighted, p=1, dim=1)
        losses = -(target * log_probabilities).sum(dim=1)
        learned = weighted * self.captions.known
        target = F.normalize(learned, p=1, dim=1)
        log_expected = self.captions.expected.clamp_min(LEAST).log()
        gained = (target * (log_probabilities - log_expected)).sum(dim=1)
        most = (target * (target.clamp_min(LEAST).log() - log_expected)).sum(dim=1).clamp_min(LEAST)
        return (
            losses.masked_fill(weighted.sum(dim=1) == 0, math.nan),
            (gained / most).masked_fill(learned.sum(dim=1) == 0, math.nan),
        )
