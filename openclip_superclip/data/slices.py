"""A pass over the data in slices: how many batches and samples an epoch reads, and checks of the
arguments.

OpenCLIP's epoch e is slice e mod K of pass e div K. Each pass shuffles all shards by the seed, and
slice s takes every K-th shard starting at s, so that the K slices of a pass contain each shard
once. The shards depend only on the epoch and the seed, so the numbers of ranks and workers may
change from one slice to the next.

OpenCLIP then splits a slice's shards among ranks and then workers, and every worker yields the same
number of full batches: ceil(ceil(--train-num-samples / (batch × ranks)) / workers). Each sample of
the slice is read exactly once if the slice's shards divide by ranks × workers and are of one size,
and a worker's shards fill these batches. Otherwise a worker with more samples skips the last ones
of its shuffled order, and a worker with fewer drops its last incomplete batch and starts over on
its own shards; `Split.reads` counts both. With --accum-freq A, OpenCLIP also drops a rank's last
batches if their number is not divisible by A. Every pass splits the shards differently, so that no
sample is skipped forever.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import InputError
from .shard_order import check_batch, slice_of

# fraction of a slice's samples that may be read twice or skipped without a warning
TOLERANCE = 0.02


def batches_of_shards(num_samples: int, batch_size: int, world_size: int, workers: int) -> int:
    """Returns the batches of a rank in an epoch of `num_samples` over WebDataset shards.

    OpenCLIP gives every data-loading worker the same number of batches, rounded up.
    """
    workers = max(1, workers)
    num_batches = math.ceil(num_samples / (batch_size * world_size))
    return math.ceil(num_batches / workers) * workers


def batches_of_table(num_rows: int, batch_size: int, world_size: int) -> int:
    """Returns the batches of a rank in a pass over a table.

    OpenCLIP distributes the rows to the ranks, rounding up, and drops the rest of the last batch.
    """
    return math.ceil(num_rows / world_size) // batch_size


class Reads(NamedTuple):
    """Numbers of samples that an epoch reads, over all ranks and workers.

    The slice has `held` samples. `once` are read before any worker starts over, all different;
    `again` are read after that. `held - once` are skipped, except for those that are read again.
    """

    held: int
    once: int
    again: int


@dataclass(frozen=True)
class Split:
    """How a run splits its shards.

    Every worker of every rank needs at least one shard of each slice."""

    num_shards: int
    world_size: int
    workers: int
    slices: int
    slice_samples: int | None  # --train-num-samples; `check` alone does not need it
    batch_size: int  # of a rank
    flag: str = "--data"
    slices_flag: str = "--set slices="

    @property
    def readers(self) -> int:
        """The workers of all ranks; a rank without workers counts as one."""
        return self.world_size * max(1, self.workers)

    def check(self) -> None:
        """Raises InputError, with a suggestion, if a worker would have no shard."""
        readers = self.readers
        if self.num_shards >= self.slices * readers:
            return
        if self.num_shards >= self.slices * self.world_size:
            advice = f"--workers {self.num_shards // (self.slices * self.world_size)}"
        elif self.num_shards >= readers:
            advice = f"{self.slices_flag}{self.num_shards // readers}"
        else:
            advice = "fewer GPUs, or more and smaller shards"
        raise InputError(
            f"{self.flag}: {self.num_shards:,} shards are too few for slices × ranks × workers = "
            f"{self.slices} × {self.world_size} × {self.workers}; expected "
            f"{self.slices * readers:,} or more, or {advice}"
        )

    def exceeds(self, total: int) -> bool:
        """Returns whether the samples of a slice, in full batches, are more than a slice of `total`
        samples has."""
        global_batch_size = self.batch_size * self.world_size
        steps = math.ceil(self.slice_samples / global_batch_size)
        return steps > math.ceil(total / (self.slices * global_batch_size))

    def reads(self, sizes: Sequence[int], seed: int = 0, epoch: int = 0) -> Reads:
        """Returns what `epoch` reads, given the shards' sizes; InputError if a worker's have
        less than one batch."""
        batches = self.world_size * batches_of_shards(
            self.slice_samples, self.batch_size, self.world_size, self.workers
        )
        of_worker = batches // self.readers
        shards = slice_of(len(sizes), self.slices, seed, epoch)
        held = once = 0
        for reader in range(self.readers):
            # the same shards as every world_size-th one, and of these every workers-th one
            holds = sum(sizes[shard] for shard in shards[reader :: self.readers])
            check_batch(holds, self.batch_size, "--superclip-slices")
            held += holds
            once += min(holds // self.batch_size, of_worker) * self.batch_size
        return Reads(held, once, batches * self.batch_size - once)

    def check_sizes(self, sizes: Sequence[int]) -> list[str]:
        """Returns a warning if some samples would be read twice or skipped because the workers'
        shards are uneven.

        Samples of a slice beyond --train-num-samples are always skipped and not counted here.
        Raises InputError if a worker has less than one batch. `sizes` are the numbers of samples of
        each shard.
        """
        held, once, again = self.reads(sizes)
        left_out = held - once
        uneven = min(left_out, again)  # without those beyond --train-num-samples
        if max(again / (once + again), uneven / held) <= TOLERANCE:
            return []
        return [
            f"{again / (once + again):.1%} of what a slice trains on is read twice, and "
            f"{left_out / held:.1%} of its samples are left out until a later pass, as each worker "
            "has few or uneven shards; fewer --workers, GPUs or slices give it more"
        ]


def equal_sizes(num_samples: int, num_shards: int) -> list[int]:
    """Divides the total number of samples equally among the shards."""
    return [
        num_samples * (i + 1) // num_shards - num_samples * i // num_shards
        for i in range(num_shards)
    ]
