"""The checkpoints of SuperCLIP's authors under our names."""

import torch
from torch import Tensor

from ..errors import InputError

HEAD_NAMES = {
    "text_decoder.ln_mlp.weight": "class_head.ln.weight",
    "text_decoder.ln_mlp.bias": "class_head.ln.bias",
    "text_decoder.text_projection.weight": "class_head.weight",
    "text_decoder.text_projection.bias": "class_head.bias",
}
STATISTICS = ("cap_fq", "num_samples")


def from_authors(weights: dict[str, Tensor], global_batch: int) -> dict[str, Tensor]:
    """Returns the authors' weights under OpenCLIP's names and those of the class head and the token statistics.

    The authors keep running means: `cap_fq` adds up, over the steps, the share of the global batch's captions that hold
    each token, and `num_samples` counts steps. Times the global batch these are the counts. Each share was rounded to
    float32 before it was added in float64: that is exact for a global batch that is a power of two, and otherwise off
    by less than 6e-8 of the count, so that rounding restores every count below 8 million and changes an IDF weight by
    less than 1e-7. With a wrong global batch the IDF weights of common tokens stay, as log((N + 1) / (df + 1)) does
    when both are scaled, but those of tokens that nearly never came are off by up to the logarithm of the scale.

    Raises InputError, with the names, for a head that is missing, incomplete or has hidden layers.
    """
    missing = [name for name in (*HEAD_NAMES, *STATISTICS) if name not in weights]
    if missing:
        raise InputError(f"this is no checkpoint of SuperCLIP's authors: it lacks {', '.join(missing)}")
    hidden = sorted(name for name in weights if name.startswith("text_decoder.") and name not in HEAD_NAMES)
    if hidden:
        raise InputError(f"its head has hidden layers, ours is one linear map: {', '.join(hidden)}")
    ours = {HEAD_NAMES.get(name, name): tensor for name, tensor in weights.items() if name not in STATISTICS}
    steps, shares = weights["num_samples"].double().reshape(()), weights["cap_fq"].double().flatten()
    ours["statistics.num_captions"] = (steps * global_batch).round().to(torch.int64)
    ours["statistics.document_frequency"] = (shares * global_batch).round().to(torch.int64)
    return ours


def with_text_in_place(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights for OpenCLIP's `CLIP`, which holds the text tower's parts itself, without `text.`."""
    return {name.removeprefix("text."): tensor for name, tensor in weights.items()}
