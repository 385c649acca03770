"""Which words the class head sees in a picture, how much of its caption each is, and where."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..method.patch_tokens import patch_map
from .lexicon import chosen_lexicon, lexicon, open_lexicon
from .tagging_model import Opened
from .word_scores import Shares

TOP = 10  # words of a picture, where nobody says how many
FINER = 4  # a picture's pixels for one of the model's, at least; more change nothing
SHORTEST = 1024  # pixels: heat maps show a picture finer than most models see it


class Seen(NamedTuple):
    """A word in a picture."""

    word: str
    score: float  # its share of the caption's IDF-weighted words, 0 to 1
    peak: float  # the same share at the patch where it is highest
    map: Tensor | None = None  # [h, w], the same share at every patch; None of an earlier call's words


class Tagger:
    """Names the words of pictures, with scores that are shares of the caption's IDF-weighted words (see `Shares`).

    Args:
        words: the words to look for, as --words gives them; without, every word that the lexicon holds, and the words
            divide the tokens between them.
        top: how many words a picture; None for 10 of the lexicon's, or all that were chosen.
    """

    def __init__(self, opened: Opened, words: str | None, top: int | None):
        self.model, self.preprocess, self.preprocess_cfg = opened.model, opened.preprocess(), opened.preprocess_cfg
        self.device = opened.model.class_head.weight.device
        vocab_size = opened.model.statistics.vocab_size
        self.is_open = words is None
        if self.is_open:
            self.lexicon = open_lexicon(opened.tokenizer, vocab_size)
        else:
            self.lexicon = chosen_lexicon(words, opened.tokenizer, vocab_size)
        self.top = top or (TOP if self.is_open else len(self.lexicon.words))
        self.tokenizer, self.weights = opened.tokenizer, opened.token_weights.cpu()
        self.shares = Shares(self.lexicon, self.weights)

    def of_words(self, words: list[str]) -> "Tagger | None":
        """Returns a tagger of the same model that looks for these words alone; None where it can spell none of them."""
        chosen = lexicon(words, self.tokenizer, self.model.statistics.vocab_size)
        if not chosen.words:
            return None
        other = copy.copy(self)
        other.is_open, other.lexicon, other.top = False, chosen, len(chosen.words)
        other.shares = Shares(chosen, self.weights)
        return other

    @property
    def shortest(self) -> int:
        """How many pixels a picture's shorter side needs."""
        size = self.preprocess_cfg.size
        return max(SHORTEST, FINER * (max(size) if isinstance(size, tuple | list) else size))

    @torch.inference_mode()
    def tag(self, pictures: Sequence[Image.Image]) -> list[list[Seen]]:
        """Returns the words of each picture, the highest score first."""
        if not pictures:
            return []
        images = torch.stack([self.preprocess(picture) for picture in pictures]).to(self.device)
        patches = patch_map(self.model.visual, self.model.patch_tokens, images).float()  # [B, W, h, w]
        return list(map(self._words, patches))  # one at a time: the vocabulary's logits at every patch are large

    def _words(self, patches: Tensor) -> list[Seen]:
        """Returns the words of one picture, patches [W, h, w]."""
        mean = self._probabilities(patches.mean(dim=(1, 2)))  # [V]
        at_patches = self._probabilities(patches.flatten(1).T)  # [h · w, V]
        best = self.shares.divide(mean, at_patches, self.top) if self.is_open else self.shares.highest(mean, self.top)
        words = list(best)
        maps = self.shares.of(at_patches, words).T.unflatten(1, patches.shape[1:])  # [K, h, w]
        return [
            Seen(self.lexicon.words[word], best[word], map.max().item(), map)
            for word, map in zip(words, maps, strict=True)
        ]

    def _probabilities(self, tokens: Tensor) -> Tensor:
        return self.model.class_head.logits(tokens).float().softmax(dim=-1).cpu()
