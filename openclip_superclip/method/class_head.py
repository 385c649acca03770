"""The class head: from the mean patch token to the class loss of each caption."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .class_loss import class_loss
from .word_sums import WordSums


class ClassHead(nn.Module):
    """LayerNorm and a linear map from the tower's width to the vocabulary (paper, section 3).

    It keeps the vocabulary logits to itself: called with captions it returns one loss each. Gains and biases are 1-d,
    so OpenCLIP does not decay them.

    Args:
        width: W, the width of the patch tokens.
        vocab_size: V, the number of token ids.
    """

    def __init__(self, width: int, vocab_size: int):
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.weight = nn.Parameter(torch.randn(vocab_size, width) * width**-0.5)  # [V, W]
        self.bias = nn.Parameter(torch.zeros(vocab_size))  # [V]

    def forward(
        self,
        patch_mean: Tensor,
        tokens: Tensor,
        idf: Tensor,
        scale: float | Tensor = 1.0,
        word_sums: WordSums | None = None,
    ) -> Tensor:
        """Returns `scale` times the class losses, float32 [B], of patch_mean [B, W], tokens [B, L] and idf [V]."""
        features = self._normalise(patch_mean)
        return class_loss(features, self.weight, self.bias, tokens, idf, scale, word_sums=word_sums)

    def logits(self, patch_mean: Tensor) -> Tensor:
        """Returns the vocabulary logits of patch tokens or their means: [..., W] to [..., V]."""
        features = self._normalise(patch_mean)
        return F.linear(features.to(self.weight.dtype), self.weight, self.bias)

    def _normalise(self, patch_mean: Tensor) -> Tensor:
        # In float32 whatever the model's precision: the mean of many tokens is the small difference of large numbers.
        return F.layer_norm(patch_mean.float(), self.ln.normalized_shape, self.ln.weight.float(), self.ln.bias.float())
