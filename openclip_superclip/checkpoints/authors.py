"""Converts checkpoints of the SuperCLIP authors' code."""

from pathlib import Path

import torch

from ..errors import InputError, listed
from ..method.head import AUTHORS_HEAD, AUTHORS_STATISTICS
from .weights import Weights, check_values

RELEASED_BATCH = 16_384  # captions per step of the released runs


def from_authors(weights: Weights, file: Path) -> Weights:
    """Returns the authors' weights, read from `file`, under the names of OpenCLIP and of this
    package.

    `cap_fq` is the sum over steps of the fraction of the global batch's captions that contain each
    token, and `num_samples` is the number of steps. Multiplied by the global batch size, these are
    counts: exact ones for the released runs, because that size is a power of two. For another one,
    all counts have the same factor, which hardly changes IDF weights.
    """
    if missing := {*AUTHORS_HEAD, *AUTHORS_STATISTICS} - weights.keys():
        raise InputError(
            f"{file} is an incomplete checkpoint of SuperCLIP's authors: it lacks "
            f"{listed(sorted(missing))}"
        )
    check_values(weights, file)
    ours = {AUTHORS_HEAD.get(name, name): tensor for name, tensor in weights.items()}
    for theirs, name in AUTHORS_STATISTICS.items():
        counts = ours.pop(theirs).double() * RELEASED_BATCH
        ours[name] = counts.round().to(torch.int64).squeeze()
    if "text.text_projection" in ours:  # of OpenCLIP's own text tower; `fit` knows both names
        ours = {name.removeprefix("text."): tensor for name, tensor in ours.items()}
    return ours
