"""The checkpoints of SuperCLIP's authors under our names."""

import torch
from torch import Tensor

from ..errors import InputError
from .weights_check import DOCUMENT_FREQUENCY, NUM_CAPTIONS

HEAD_NAMES = {
    "text_decoder.ln_mlp.weight": "class_head.ln.weight",
    "text_decoder.ln_mlp.bias": "class_head.ln.bias",
    "text_decoder.text_projection.weight": "class_head.weight",
    "text_decoder.text_projection.bias": "class_head.bias",
}
STATISTICS = ("cap_fq", "num_samples")
FLOAT32 = 2**-24  # the rounding of each share, relative
EXACT = 2**53  # from here on float64 skips whole numbers


def from_authors(weights: dict[str, Tensor], global_batch: int) -> dict[str, Tensor]:
    """Returns the authors' weights under OpenCLIP's names and those of the class head and the token statistics.

    The authors keep running means: `cap_fq` adds up, over the steps, the share of the global batch's captions that hold
    each token, and `num_samples` counts steps. Times the global batch these are the counts. Each share was rounded to
    float32 before it was added in float64: that is exact for a global batch that is a power of two, and otherwise off
    by less than 6e-8 of the count, so that rounding restores every count below 8 million and changes an IDF weight by
    less than 1e-7. With a wrong global batch the IDF weights of common tokens stay, as log((N + 1) / (df + 1)) does
    when both are scaled, but those of tokens that nearly never came are off by up to the logarithm of the scale.

    Raises InputError, with the names, for a head that is missing, incomplete or has hidden layers, and for means that
    no run can have counted.
    """
    missing = [name for name in (*HEAD_NAMES, *STATISTICS) if name not in weights]
    if missing:
        raise InputError(f"this is no checkpoint of SuperCLIP's authors: it lacks {', '.join(missing)}")
    hidden = sorted(name for name in weights if name.startswith("text_decoder.") and name not in HEAD_NAMES)
    if hidden:
        raise InputError(f"its head has hidden layers, ours is one linear map: {', '.join(hidden)}")
    steps, means = _checked_means(weights["num_samples"], weights["cap_fq"], global_batch)
    ours = {HEAD_NAMES.get(name, name): tensor for name, tensor in weights.items() if name not in STATISTICS}
    ours[NUM_CAPTIONS] = torch.tensor(round(steps * global_batch))
    ours[DOCUMENT_FREQUENCY] = (means * global_batch).round().to(torch.int64)
    return ours


def _checked_means(num_samples: Tensor, cap_fq: Tensor, global_batch: int) -> tuple[float, Tensor]:
    """Returns the number of steps and the running means, float64 [V]; InputError for what no run can have counted."""
    if num_samples.numel() != 1:
        raise InputError(f"num_samples is {list(num_samples.shape)}, expected one number")
    steps, means = num_samples.double().item(), cap_fq.double().flatten()
    if not 0 <= steps * global_batch < EXACT:
        raise InputError(f"num_samples is {steps:g}; expected the number of the run's steps")
    wrong = ~((means >= 0) & (means <= steps * (1 + FLOAT32)))  # NaN is wrong too
    if wrong.any():
        token = int(wrong.int().argmax())
        raise InputError(f"cap_fq of token {token} is {means[token].item():g}; expected 0 to {steps:g}, num_samples")
    return steps, means


def with_text_in_place(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights for OpenCLIP's `CLIP`, which holds the text tower's parts itself, without `text.`."""
    return {name.removeprefix("text."): tensor for name, tensor in weights.items()}
