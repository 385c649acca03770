"""The scores of pairs: class loss, support and CLIP score, and the words behind them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..method.model import SuperCoCa
from ..method.patch_tokens import encode_image, encode_image_with_pooled_tokens
from ..tagging.tagging_model import Opened
from .word_support import LEAST, CaptionSupport, WordSupport


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
        if isinstance(model, SuperCoCa):
            features, _, patch_mean = encode_image_with_pooled_tokens(model.visual, pictures)
        else:
            features, patch_mean = encode_image(model.visual, model.patch_tokens, pictures)
        logits = model.class_head.logits(patch_mean).float()  # [B, V]
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
