"""The order in which OpenCLIP reads its training data where a pass is cut into slices."""

import itertools
import random
from collections.abc import Iterable, Iterator
from hashlib import blake2b

import numpy as np
import open_clip_train.data
import torch
from torch.utils.data import get_worker_info
from webdataset.filters import _shuffle

from ..errors import InputError
from .slices import slice_of, too_few


class DataOrder:
    """The stages that stand for OpenCLIP's two shuffles; what they draw follows from (seed, epoch, rank, worker).

    So does whatever else a data-loading process draws: its generators are seeded as an epoch starts, those of torch
    (random crops), of Python and of NumPy. The training process's, which drop patches (FLIP) and more, are seeded as it
    starts an epoch; with --workers 0 both are one process and take turns.

    Args:
        slices: epochs to a pass.
        seed: with which a resumed run must be given again.
        rank: of this process.
        batch_size: of a rank.
        epoch: OpenCLIP's shared epoch.
    """

    def __init__(self, slices: int, seed: int, rank: int, batch_size: int, epoch):
        self.slices, self.seed, self.rank, self.batch_size, self.epoch = slices, seed, rank, batch_size, epoch
        self._seeded = None  # the epoch that this process was last seeded for
        self._seed_training_process()

    def shards(self, shards: Iterable[dict]) -> Iterator[dict]:
        """Yields those of all shards that the epoch reads."""
        shards = list(shards)
        for index in slice_of(len(shards), self.slices, self.seed, self.epoch.get_value()):
            yield shards[index]

    def samples(self, samples: Iterator[dict]) -> Iterator[dict]:
        """Returns the samples of the worker's shards, shuffled in a buffer of the size of OpenCLIP's."""
        epoch = self.epoch.get_value()
        if epoch != self._seeded:  # else the worker's shards have ended within the epoch: it draws on
            self._seeded = epoch
            worker = get_worker_info()
            self._seed_process(f"worker {worker.id if worker else 0}", epoch)
        return _shuffle(
            self._at_least_a_batch(samples),
            open_clip_train.data._SAMPLE_SHUFFLE_SIZE,
            open_clip_train.data._SAMPLE_SHUFFLE_INITIAL,
            random.Random(random.getrandbits(64)),
        )

    def _at_least_a_batch(self, samples: Iterator[dict]) -> Iterator[dict]:
        """Yields the samples; InputError where they fill no batch, for which OpenCLIP would start over forever."""
        number = 0
        for number, sample in enumerate(samples, start=1):  # noqa: B007
            yield sample
        if number < self.batch_size:
            raise InputError(too_few(number, self.batch_size))

    def _seed_training_process(self) -> None:
        """Makes the shared epoch seed the training process whenever OpenCLIP, which is about to start one, sets it."""
        set_value, starts = self.epoch.set_value, itertools.count()

        def set_value_and_seed(epoch: int) -> None:
            set_value(epoch)
            self._seed_process("training", epoch)
            if next(starts) > 0:  # the first time, torch's data loader is about to draw a seed for its workers
                torch.empty((), dtype=torch.int64).random_()

        self.epoch.set_value = set_value_and_seed

    def _seed_process(self, process: str, epoch: int) -> None:
        text = f"{self.seed}\0{epoch}\0{self.rank}\0{process}"
        seed = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
