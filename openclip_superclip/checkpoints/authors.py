"""Converts checkpoints of the SuperCLIP authors' code."""

from pathlib import Path

import torch

from ..errors import InputError, listed
from ..method.head import AUTHORS_HEAD, AUTHORS_STATISTICS
from .weights import Weights, check_values

RELEASED_BATCH = 16_384  # captions per step of the released runs
FLOAT32 = 2**-24  # relative rounding error of each fraction
NEAR = 0.02  # tolerance for whole counts


def from_authors(weights: Weights, global_batch: int, file: Path) -> tuple[Weights, bool]:
    """Returns the authors' weights, read from `file`, under the names of OpenCLIP and of this
    package, and whether `global_batch` gives whole counts.

    `cap_fq` is the sum over steps of the fraction of the global batch's captions that contain each
    token, and `num_samples` is the number of steps. Multiplied by the global batch size, these are
    counts. Each fraction was rounded to float32 before it was added in float64. This is exact if
    the global batch size is a power of two. Otherwise rounding to integers restores all counts
    below 8 million, and changes IDF weights by less than 1e-7.
    """
    if missing := {*AUTHORS_HEAD, *AUTHORS_STATISTICS} - weights.keys():
        raise InputError(
            f"{file} is an incomplete checkpoint of SuperCLIP's authors: it lacks "
            f"{listed(sorted(missing))}"
        )
    check_values(weights, file)
    ours = {AUTHORS_HEAD.get(name, name): tensor for name, tensor in weights.items()}
    for theirs, name in AUTHORS_STATISTICS.items():
        counts = ours.pop(theirs).double() * global_batch
        ours[name] = counts.round().to(torch.int64).squeeze()
    counts = weights["cap_fq"].double() * global_batch
    # the rounding error of larger ones hides their fraction
    counts = counts[counts * FLOAT32 < NEAR / 2]
    is_whole = bool(((counts - counts.round()).abs() < NEAR).all())
    if "text.text_projection" in ours:  # of OpenCLIP's own text tower; `fit` knows both names
        ours = {name.removeprefix("text."): tensor for name, tensor in ours.items()}
    return ours, is_whole
