"""How far rounding can carry the class loss and its gradients from the truth, told from the lengths of its sums.

A sum of n products errs by at most γ_n = n·u / (1 - n·u) of the sum of their absolute values, u the unit roundoff, in
whatever order it is made (Higham, Accuracy and Stability of Numerical Algorithms, chapter 3): for every BLAS, number of
threads and split into chunks.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 8  # operations on one number beside the sums: exponential, logarithm, division, products with scales


def worst_case(n: int, unit: float) -> float:
    """Returns γ_n, the relative error that n roundings never exceed."""
    return n * unit / (1 - n * unit)


def likely(n: int, unit: float) -> float:
    """Returns what n roundings of either sign exceed next to never: 6·√n·u (Higham and Mary, SISC 2019)."""
    return 6 * math.sqrt(n) * unit


def error_bounds(
    leaves: tuple[Tensor, Tensor, Tensor],
    target: Tensor,
    upstream: Tensor,
    compute_dtype: torch.dtype,
    gamma: Callable[[int, float], float] = worst_case,
) -> list[Tensor]:
    """Returns the largest errors, float64, of the losses and of the gradients by features, weight and bias.

    Sums are made in float32, of operands that are rounded to `compute_dtype`.

    Args:
        leaves: features [B, W], weight [V, W] and bias [V].
        target: [B, V], float64; of as many words as are not 0.
        upstream: [B], the losses' gradient.
        gamma: the relative error of n roundings.
    """
    features, weight, bias = (leaf.detach().double() for leaf in leaves)
    (batch, width), vocab = features.shape, len(weight)
    num_words = int((target > 0).sum(dim=1).max())
    upstream = upstream.double().abs()

    def relative(n):
        """Of a sum of n products, its operands and itself rounded."""
        narrow = 0.0 if compute_dtype == torch.float32 else worst_case(FEW, torch.finfo(compute_dtype).eps / 2)
        return gamma(n + FEW, 2.0**-24) + narrow

    # Half of the least number above 0: float16 loses smaller probabilities, even lifted.
    least = torch.finfo(compute_dtype).smallest_normal * torch.finfo(compute_dtype).eps / 2

    logits = F.linear(features, weight, bias)  # [B, V]
    logits_error = relative(width + 1) * F.linear(features.abs(), weight.abs(), bias.abs())
    # The largest logit is taken off before the exponential, and rounded once there.
    logits_error += 2.0**-24 * (logits.amax(dim=1, keepdim=True) - logits)
    worst_logit = logits_error.amax(dim=1, keepdim=True)
    sum_error = worst_logit + gamma(vocab + FEW, 2.0**-24)  # of the exponentials' sum, relative
    target_error = gamma(num_words + FEW, 2.0**-24) * target
    losses = (
        sum_error.squeeze(1)
        + gamma(FEW, 2.0**-24) * logits.abs().amax(dim=1)
        + ((target * logits_error) + 2 * target_error * logits.abs()).sum(dim=1)
    )
    losses = torch.where(target.sum(dim=1) > 0, losses, 0.0)  # no words, no loss: exactly

    probabilities = logits.softmax(dim=1)
    residual = (probabilities - target).abs() * upstream.unsqueeze(1)  # [B, V]
    residual_error = (probabilities * (logits_error + sum_error) + target_error + least) * upstream.unsqueeze(1)
    has_words = (target.sum(dim=1) > 0).double().unsqueeze(1)
    residual, residual_error = residual * has_words, residual_error * has_words
    return [
        losses,
        (residual_error + relative(vocab) * residual) @ weight.abs() + least,
        (residual_error + relative(batch) * residual).T @ features.abs() + least,
        (residual_error + relative(batch) * residual).sum(dim=0) + least,
    ]
