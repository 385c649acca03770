"""A pass over the data in slices: which shards and how many samples an epoch reads, and checks of
the arguments.

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

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from ..errors import InputError
from .steps import batches_of_shards

# fraction of a slice's samples that may be read twice or skipped without a warning
TOLERANCE = 0.02


def slice_of(num_shards: int, slices: int, seed: int, epoch: int) -> list[int]:
    """Returns the shards that `epoch` reads, in the order in which they are split: a pass sorts
    them by a hash."""
    texts = (f"{seed}\0{epoch // slices}\0{shard}" for shard in range(num_shards))
    order = sorted((blake2b(text.encode()).digest(), shard) for shard, text in enumerate(texts))
    return [shard for _, shard in order[epoch % slices :: slices]]


def more_than_a_slice(num_samples: int, total: int, slices: int, global_batch_size: int) -> bool:
    """Returns whether an epoch of this many samples, in full batches, is larger than a slice of
    `total` samples."""
    return -(-num_samples // global_batch_size) > -(-total // (slices * global_batch_size))


def check_batch(num_samples: int, batch_size: int, flag: str) -> None:
    """Raises InputError if a worker's shards hold less than one batch, for which OpenCLIP would
    loop forever."""
    if num_samples < batch_size:
        raise InputError(
            f"{flag}: the shards that a worker reads provide {num_samples:,} samples, and "
            "--batch-size is "
            f"{batch_size:,}; expected a full batch or more: give fewer --workers or slices or "
            "a smaller --batch-size "
            "(in a recipe, --set global_batch_size=N), or find broken shards with superclip "
            "plan --check"
        )


def at_least_a_batch(samples: Iterable[dict], batch_size: int, flag: str) -> Iterator[dict]:
    """Yields the samples of a pass, and then calls `check_batch`."""
    number = 0
    for number, sample in enumerate(samples, start=1):  # noqa: B007
        yield sample
    check_batch(number, batch_size, flag)


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
    slices: int = 1
    slice_samples: int | None = None  # --train-num-samples
    batch_size: int | None = None  # of a rank
    flag: str = "--data"
    slices_flag: str = "--set slices="

    def check(self) -> None:
        """Raises InputError, with a suggestion, if a worker would have no shard."""
        readers = self.world_size * max(1, self.workers)
        if self.num_shards >= self.slices * readers:
            return
        if self.num_shards >= self.slices * self.world_size:
            advice = f"--workers {self.num_shards // (self.slices * self.world_size)}"
        elif self.num_shards >= readers:
            advice = f"{self.slices_flag}{self.num_shards // readers}"
        else:
            advice = "fewer GPUs, or more and smaller shards"
        raise InputError(
            f"{self.flag}: {self.num_shards:,} shards are too few for {self.slices} slices × "
            f"{self.world_size} ranks × {self.workers} workers; expected "
            f"{self.slices * readers:,} or more, or {advice}"
        )

    def reads(self, sizes: Sequence[int], seed: int = 0, epoch: int = 0) -> Reads:
        """Returns what `epoch` reads, given the shards' sizes; InputError if a worker's have
        less than one batch."""
        workers = max(1, self.workers)
        batches = batches_of_shards(
            self.slice_samples, self.batch_size, self.world_size, self.workers
        )
        of_worker = batches // workers
        shards = slice_of(len(sizes), self.slices, seed, epoch)
        held = once = 0
        for rank in range(self.world_size):
            for worker in range(workers):
                holds = sum(
                    sizes[shard] for shard in shards[rank :: self.world_size][worker::workers]
                )
                check_batch(holds, self.batch_size, "--superclip-slices")
                held += holds
                once += min(holds // self.batch_size, of_worker) * self.batch_size
        return Reads(held, once, batches * self.world_size * self.batch_size - once)

    def check_sizes(self, sizes: Sequence[int]) -> list[str]:
        """Returns a warning if some samples would be read twice or skipped because the workers'
        shards are uneven.

        Samples of a slice beyond --train-num-samples are always skipped and not counted here.
        Raises InputError if a worker has less than one batch. `sizes` are the numbers of samples of
        each shard.
        """
        held, once, again = self.reads(sizes)
        left_out = held - once
        uneven = left_out - max(0, held - once - again)
        if max(again / (once + again), uneven / held) <= TOLERANCE:
            return []
        return [
            f"{again / (once + again):.1%} of what a slice trains on is read twice, and "
            f"{left_out / held:.1%} of its "
            "samples are left out until a later pass, as each worker has few or uneven shards; "
            "fewer --workers, GPUs or slices give it more"
        ]


def equal_sizes(num_samples: int, num_shards: int) -> list[int]:
    """Divides the total number of samples equally among the shards."""
    return [
        num_samples * (i + 1) // num_shards - num_samples * i // num_shards
        for i in range(num_shards)
    ]


class DataOrder:
    """The stages that replace OpenCLIP's two shuffles, seeded by (seed, epoch, rank, worker).

    At the start of each epoch, the generators of torch, Python and NumPy are seeded in every
    data-loading process (random crops) and in the training process (patch dropout). With --workers
    0 both are the same process. A pass has `slices` epochs, `epoch` is OpenCLIP's shared one, and
    `shuffle_sizes` are those of the buffer of samples.
    """

    def __init__(
        self,
        slices: int,
        seed: int,
        rank: int,
        batch_size: int,
        epoch,
        shuffle_sizes: tuple[int, int],
    ):
        self.slices, self.seed, self.rank, self.batch_size, self.epoch = (
            slices,
            seed,
            rank,
            batch_size,
            epoch,
        )
        self.shuffle_sizes = shuffle_sizes
        self._seeded = None  # the epoch of the last seeding of this process
        self._seed_training_process()

    def shards(self, shards: Iterable[dict]) -> Iterator[dict]:
        """Yields the shards of the epoch's slice."""
        shards = list(shards)
        for index in slice_of(len(shards), self.slices, self.seed, self.epoch.get_value()):
            yield shards[index]

    def samples(self, samples: Iterator[dict]) -> Iterator[dict]:
        """Returns the samples of the worker's shards, shuffled in a buffer of OpenCLIP's size."""
        from torch.utils.data import get_worker_info
        from webdataset.filters import _shuffle

        epoch = self.epoch.get_value()
        # otherwise the worker starts over within the epoch, with the same generators
        if epoch != self._seeded:
            self._seeded = epoch
            worker = get_worker_info()
            self._seed_process(f"worker {worker.id if worker else 0}", epoch)
        samples = at_least_a_batch(samples, self.batch_size, "--superclip-slices")
        return _shuffle(samples, *self.shuffle_sizes, random.Random(random.getrandbits(64)))

    def _seed_training_process(self) -> None:
        """Seeds the training process whenever OpenCLIP sets the shared epoch, just before the
        epoch starts."""
        import torch

        set_value, starts = self.epoch.set_value, itertools.count()

        def set_value_and_seed(epoch: int) -> None:
            set_value(epoch)
            self._seed_process("training", epoch)
            # in the first epoch, torch's data loader draws a seed for its workers
            if next(starts) > 0:
                torch.empty((), dtype=torch.int64).random_()

        self.epoch.set_value = set_value_and_seed

    def _seed_process(self, process: str, epoch: int) -> None:
        import numpy as np
        import torch

        text = f"{self.seed}\0{epoch}\0{self.rank}\0{process}"
        seed = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
