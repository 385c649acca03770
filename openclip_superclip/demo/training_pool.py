"""The demo's settings, and the pool that trains and measures its runs, several at a time."""

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from ..atomic_files import make_folder
from .demo_model import write_model
from .demo_run import DemoRun, train_and_measure
from .scenes import CAPTIONS, write_shards


class DemoSettings(NamedTuple):
    """What a call of the demo compares: the options of the same names."""

    quick: bool
    seeds: int
    samples: int
    batch_size: int
    learning_rates: list[float]
    captions: list[str]
    jobs: int
    out: Path

    def as_dict(self) -> dict:
        """Returns them as JSON holds them."""
        return {**self._asdict(), "out": str(self.out)}


@contextmanager
def training_pool(settings: DemoSettings) -> Iterator[Callable[..., Future]]:
    """Yields `train(run, split="test")`, which returns the future of a run's record.

    Each run reads scenes whose own text is its kind of caption, short ones where it mixes short and long. Where the
    block ends in an error, what waits in line is not trained.
    """
    logging.getLogger().setLevel(logging.ERROR)  # OpenCLIP warns that a model to be trained has no weights
    torch.set_num_threads(1)  # measuring happens in the threads that also wait for the runs
    make_folder(settings.out, "--out")
    model = write_model(settings.out / "model")

    def train(run: DemoRun, split: str = "test") -> Future:
        kind = run.caption if run.caption in CAPTIONS else "short"
        folder = settings.out / "data" / f"{kind}-{settings.samples}"
        train_data = write_shards(folder, settings.samples, seed=0, caption=kind)
        return pool.submit(train_and_measure, run, train_data, model, settings.out, stop, split)

    stop = threading.Event()
    with ThreadPoolExecutor(settings.jobs) as pool:
        try:
            yield train
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
