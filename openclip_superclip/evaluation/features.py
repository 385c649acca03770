"""The settings of an evaluation, and the features of a model for all images of a data set."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from tqdm import tqdm

from ..data.images import restrict_formats
from ..errors import InputError, printable
from .local_datasets import LocalDataset

SEED = 0  # CLIP_benchmark's default


@dataclass(frozen=True)
class EvaluationSettings:
    """How to evaluate; the defaults of the command line are CLIP_benchmark's."""

    device: str  # cpu or cuda
    precision: str  # amp or fp32
    batch_size: int
    workers: int
    probe_lr: float
    probe_epochs: int

    def of_task(self, task: str) -> dict:
        """Returns the settings on which the metrics of a task depend."""
        # amp is bfloat16 on a CPU, and float16 on a GPU
        settings = {"precision": self.precision, "device": self.device}
        if task == "linear_probe":
            settings |= {
                "batch_size": self.batch_size,
                "lr": self.probe_lr,
                "epochs": self.probe_epochs,
                "seed": SEED,
            }
        return settings

    def autocast(self) -> torch.autocast:
        """Returns the context in which CLIP_benchmark calls a model."""
        return torch.autocast(self.device, enabled=self.precision == "amp")


class Features(NamedTuple):
    """The features of a split's images, before any normalisation, in the data set's order."""

    images: Tensor  # [N, D]
    targets: Tensor | list[list[str]]  # labels [N] or [N, classes], or the captions of each image


def encode(
    encode_image: Callable, source: LocalDataset, dataset: Dataset, settings: EvaluationSettings
) -> Features:
    """Returns the features of all images of a split; InputError if it is empty or if they are
    non-finite."""
    # Several workers would change the order of an iterable data set.
    workers = min(settings.workers, 1) if isinstance(dataset, IterableDataset) else settings.workers
    loader = DataLoader(
        dataset,
        batch_size=settings.batch_size,
        num_workers=workers,
        collate_fn=source.collate,
        worker_init_fn=restrict_formats,  # for workers that are not forked
    )
    parts = []
    targets = []
    title = printable(source.name)
    for images, batch in tqdm(loader, desc=title, unit=" batches", leave=False, disable=None):
        with torch.no_grad(), settings.autocast():
            features = encode_image(images.to(settings.device))
        parts.append(finite(features, "images").cpu())
        targets += [batch] if isinstance(batch, Tensor) else batch
    if not parts:
        raise InputError("it contains no image")
    if isinstance(targets[0], Tensor):
        targets = torch.cat(targets)
    return Features(torch.cat(parts), targets)


def finite(features: Tensor, of: str) -> Tensor:
    """Returns the features; InputError if they are non-finite."""
    if not torch.isfinite(features).all():
        raise InputError(f"the model's features of {of} are not finite numbers (NaN or infinite)")
    return features
