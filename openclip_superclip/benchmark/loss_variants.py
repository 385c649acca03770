"""The class loss five ways, each with its gradients: what cannot be avoided, and four ways to get the rest."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..method.class_loss import class_loss, plain_class_loss
from ..method.word_sums import WordSums


class Inputs(NamedTuple):
    """A batch as the head sees it."""

    features: Tensor  # [B, W]
    weight: Tensor  # [V, W]
    bias: Tensor  # [V]
    tokens: Tensor  # [B, L]
    idf: Tensor  # [V]


def make_inputs(batch: int, width: int, vocab_size: int, device: str, context_length: int = 77) -> Inputs:
    """Returns random inputs of the given sizes; captions of 3 to 30 words, as web captions have, then padding."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, vocab_size, (batch, context_length), generator=generator)
    lengths = torch.randint(3, 31, (batch, 1), generator=generator)
    tokens[torch.arange(context_length) >= lengths] = 0
    idf = torch.rand(vocab_size, generator=generator) + 1
    idf[0] = 0
    features = torch.randn(batch, width, generator=generator)
    weight = torch.randn(vocab_size, width, generator=generator) * width**-0.5
    leaves = [tensor.to(device).requires_grad_() for tensor in (features, weight, torch.zeros(vocab_size))]
    return Inputs(*leaves, tokens.to(device), idf.to(device))


@torch.no_grad()
def products(features: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor, idf: Tensor) -> None:
    """Computes the three matrix products that no way can do without: logits, gradient of input, gradient of weight."""
    device = features.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    features, weight = features.to(dtype), weight.to(dtype)
    logits = features @ weight.T  # [B, V]
    features.grad = logits @ weight
    weight.grad = logits.T @ features


def dense(features: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor, idf: Tensor) -> None:
    """Computes loss and gradients by the definition, on dense [B, V] targets, as the authors' formula is written."""
    plain_class_loss(features, weight, bias, tokens, idf).mean().backward()


def sparse(features: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor, idf: Tensor) -> None:
    """Computes loss and gradients from the captions' tokens alone, by autograd: no dense target, but dense logits."""
    logits = F.linear(features, weight, bias).float()  # [B, V]
    labels, _ = tokens.sort(dim=1)
    weights = idf[labels]
    weights[:, 1:].masked_fill_(labels[:, 1:] == labels[:, :-1], 0.0)
    target = F.normalize(weights, p=1, dim=1)  # [B, L]
    losses = logits.logsumexp(dim=1) * target.sum(dim=1) - (target * logits.gather(1, labels)).sum(dim=1)
    losses.mean().backward()


def ours(features: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor, idf: Tensor) -> None:
    """Computes loss and gradients in chunks, as training does."""
    class_loss(features, weight, bias, tokens, idf).mean().backward()


def recorded(features: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor, idf: Tensor) -> None:
    """Computes the same, and sums up how well each word is known, as training does by default."""
    class_loss(features, weight, bias, tokens, idf, word_sums=WordSums(idf > 0)).mean().backward()


CONTENDERS: dict[str, Callable[..., None]] = {
    "three products": products,
    "dense targets": dense,
    "sparse targets": sparse,
    "class_loss": ours,
    "with the words recorded": recorded,
}


def compute(name: str, inputs: Inputs, autocast: torch.dtype | None = None) -> None:
    """Runs a contender on fresh gradients, under autocast where a dtype is given."""
    for leaf in inputs[:3]:
        leaf.grad = None
    with torch.autocast(inputs.features.device.type, dtype=autocast, enabled=autocast is not None):
        CONTENDERS[name](*inputs)
