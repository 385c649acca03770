"""The order of shards and samples: which shards an epoch reads, and how they are shuffled."""

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

from ..errors import InputError


def slice_of(num_shards: int, slices: int, seed: int, epoch: int) -> list[int]:
    """Returns the shards that `epoch` reads, in the order in which they are split: a pass sorts
    them by a hash."""

    def digest(shard: int) -> bytes:
        return blake2b(f"{seed}\0{epoch // slices}\0{shard}".encode()).digest()

    return sorted(range(num_shards), key=digest)[epoch % slices :: slices]


def check_batch(num_samples: int, batch_size: int, flag: str) -> None:
    """Raises InputError if a worker's shards hold less than one batch, for which OpenCLIP would
    loop forever."""
    if num_samples < batch_size:
        raise InputError(
            f"{flag}: the shards that a worker reads provide {num_samples:,} samples, and "
            f"--batch-size is {batch_size:,}; expected a full batch or more: give fewer --workers "
            "or slices or a smaller --batch-size (in a recipe, --set global_batch_size=N), or find "
            "broken shards with superclip check DATA"
        )


def at_least_a_batch(samples: Iterable[dict], batch_size: int, flag: str) -> Iterator[dict]:
    """Yields the samples of a pass, and then calls `check_batch`."""
    number = 0
    for number, sample in enumerate(samples, start=1):  # noqa: B007
        yield sample
    check_batch(number, batch_size, flag)


@dataclass
class DataOrder:
    """The stages that replace OpenCLIP's two shuffles, seeded by (seed, epoch, rank, worker).

    At the start of each epoch, the generators of torch, Python and NumPy are seeded in every
    data-loading process (random crops) and in the training process (patch dropout). With --workers
    0 both are the same process.
    """

    slices: int  # epochs of a pass
    seed: int
    rank: int
    batch_size: int
    epoch: object  # OpenCLIP's shared one
    shuffle_sizes: tuple[int, int]  # of the buffer of samples

    def __post_init__(self):
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

        set_value = self.epoch.set_value
        starts = itertools.count()

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
