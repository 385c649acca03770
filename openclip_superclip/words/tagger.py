"""Tags images with the words that a model's class head predicts."""

from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..method.head_input import head_input_map
from .lexicon import Lexicon, WordProbabilities, open_lexicon, seen_words
from .open_checkpoint import OpenedCheckpoint

TOP = 10  # words per image, without --words


class SeenWord(NamedTuple):
    """A word in an image."""

    word: str
    score: float  # its predicted fraction of the caption's IDF-weighted words, 0 to 1
    peak: float  # the score at the best patch
    map: Tensor  # [h, w], the score at each patch


class Tagger:
    """Tags images with the `top` words of those chosen, by default all of them.

    If none are chosen, these are all words that are single tokens of the model's vocabulary, and
    the best 10 of them. Words that no training caption can have contained, by the checkpoint's
    counts of tokens, are left out.
    """

    def __init__(
        self, opened: OpenedCheckpoint, chosen: Lexicon | None = None, top: int | None = None
    ):
        weights = opened.token_weights.cpu()
        words = chosen or open_lexicon(opened.tokenizer, len(weights))
        statistics = opened.model.statistics
        if statistics.num_captions:
            words = seen_words(words, statistics.document_frequency.cpu())
        if not words.words:
            raise InputError("--words: no training caption contains any of them")
        self.opened = opened
        self.lexicon = words
        most = len(words.words)
        self.top = min(top or (most if chosen else TOP), most)
        self.words = WordProbabilities(words, weights)
        self.preprocess = opened.preprocess()

    @torch.inference_mode()
    def tag(self, image: Image.Image) -> list[SeenWord]:
        """Returns the words of an image, highest score first."""
        model = self.opened.model
        head = model.class_head
        inputs = self.preprocess(image)[None].to(head.weight.device)
        # [W, h, w]
        (patches,) = head_input_map(model.visual, model.patch_tokens, inputs, head.reads).float()
        whole_image = patches.mean(dim=(1, 2))  # [W]
        scores, best = self._scores(whole_image).topk(self.top)  # [K]
        of_patches = self._scores(patches.flatten(1).T, best)  # [h * w, K]
        maps = of_patches.T.unflatten(1, patches.shape[1:])  # [K, h, w]
        return [
            SeenWord(self.lexicon.words[word], score, map.max().item(), map)
            for word, score, map in zip(best.tolist(), scores.tolist(), maps, strict=True)
        ]

    def _scores(self, inputs: Tensor, words: Tensor | slice = slice(None)) -> Tensor:
        """Returns the scores of words, [..., N], given inputs of the head, [..., W]."""
        logits = self.opened.model.class_head.logits(inputs).float()
        return self.words.of(logits.softmax(dim=-1).cpu(), words)
