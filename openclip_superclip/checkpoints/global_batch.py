"""Which global batch a run of the authors' had, told from its running means."""

import torch
from torch import Tensor

from .authors_checkpoint import FLOAT32

LARGEST = 2**17  # batches that are tried
RAREST = 64  # tokens by which a batch is tried first: their counts are small, and off by little
NEAR = 0.02  # how far from whole a count of rounded shares may be


def whole_counts(cap_fq: Tensor, global_batch: int) -> bool:
    """Tells whether the running means, times the batch, are whole numbers, as counts are."""
    return bool(_whole(_usable(cap_fq, global_batch)[None], torch.tensor([global_batch])).item())


def fitting_batch(cap_fq: Tensor, largest: int = LARGEST) -> int | None:
    """Returns the smallest global batch with which all running means, float64 [V], give whole counts; None without.

    Every multiple of the right batch gives whole counts too.
    """
    means = _usable(cap_fq, largest)
    rarest = means.sort().values[:RAREST]
    if not len(rarest):
        return None
    batches = torch.arange(1, largest + 1)
    fitting = torch.cat([part[_whole(rarest[None], part)] for part in batches.split(2**14)])
    return next((batch for batch in fitting.tolist() if whole_counts(means, batch)), None)


def _usable(cap_fq: Tensor, global_batch: int) -> Tensor:
    """Returns the means whose counts are small enough for their rounding to leave them near whole numbers."""
    means = cap_fq.double().flatten()
    return means[(means > 0) & (means * global_batch * FLOAT32 < NEAR / 2)]


def _whole(means: Tensor, batches: Tensor) -> Tensor:
    """Tells of each batch [N] whether the means [1, V] times it are near whole numbers, bool [N]."""
    counts = means * batches[:, None]
    return ((counts - counts.round()).abs() < NEAR).all(dim=1)
