"""Image features, computed once a model and split and kept beside the results: every measure reads the same ones."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from clip_benchmark.datasets.builder import get_dataset_collate_fn
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from ..errors import InputError
from ..files import whole_output, write_json
from . import datasets as shard_samples
from .datasets import Data

WAIT = timedelta(days=7)  # while the first rank computes what is not shared


class EvaluationRanks:
    """This process among those that torchrun has started. All of them make the same calls, in the same order."""

    def __init__(self):
        self.world_size, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        if self.world_size > 1:
            dist.init_process_group("gloo", timeout=WAIT)
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def of_first(self, value: Any) -> Any:
        """Returns the first rank's value on all."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def on_first(self, value: Any) -> list[Any] | None:
        """Returns the values of all ranks on the first one, None on the others."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size if self.is_first else None
        dist.gather_object(value, values, dst=0)
        return values

    def raise_together(self, error: BaseException | None) -> None:
        """Raises what went wrong on this rank or, where only others failed, the first of their errors."""
        errors = [error]
        if self.world_size > 1:
            told = [None] * self.world_size
            dist.all_gather_object(told, None if error is None else f"{type(error).__name__}: {error}")
            errors += [RuntimeError(other) for other in told if other is not None]
        for found in errors:
            if found is not None:
                raise found

    def end(self) -> None:
        """Lets the others go."""
        if self.world_size > 1:
            dist.barrier()
            dist.destroy_process_group()


ABOUT, IMAGES, TARGETS = "about.json", "images.bin", "targets.pt"


class Features(NamedTuple):
    """What a model makes of the pictures of a split, before any normalisation, in the data set's order.

    Attributes:
        images: [N, D], or [N, pictures, D] where a sample has several; mapped, not read.
        targets: labels [N] or [N, classes], or the captions of each sample.
    """

    images: Tensor
    targets: Tensor | list[list[str]]


class FeatureBatches:
    """A data loader for CLIP_benchmark: features in the shape of pictures of one pixel, D its channels."""

    def __init__(self, features: Features, batch_size: int, dataset: object):
        self.features, self.batch_size, self.dataset = features, batch_size, dataset

    def __len__(self) -> int:
        return -(-len(self.features.targets) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | list[list[str]]]]:
        for start in range(0, len(self.features.targets), self.batch_size):
            some = slice(start, start + self.batch_size)
            yield self.features.images[some, ..., None, None].clone(), self.features.targets[some]


def feature_folder(folder: Path, model: str, data: Data, split: str, facts: dict) -> Path:
    """Returns where features are kept.

    Args:
        folder: of the results.
        facts: all that they depend on.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    words = (re.sub(r"[^\w.+-]+", "-", word).strip("-") for word in (model, data.name, split))
    return folder / "features" / f"{'.'.join(words)}.{digest}"


def read_features(folder: Path) -> Features:
    """Returns features that were kept."""
    about = json.loads((folder / ABOUT).read_text())
    shape, dtype = about["shape"], getattr(torch, about["dtype"])
    images = torch.from_file(str(folder / IMAGES), size=torch.Size(shape).numel(), dtype=dtype).view(shape)
    return Features(images, torch.load(folder / TARGETS, weights_only=True))


def keep_features(
    folder: Path,
    model: nn.Module,
    data: Data,
    build: Callable[[], object],
    batch_size: int,
    workers: int,
    autocast: Callable,
    facts: dict,
    ranks: EvaluationRanks,
) -> None:
    """Computes the features of a split, all ranks together, and keeps them; what is kept already stays.

    Batches go to the ranks in turn and come back in order: the features are those of one rank, to the bit. Raises on
    all ranks what went wrong on any.

    Args:
        folder: as `feature_folder` returns it.
        build: returns CLIP_benchmark's data set, one with samples by place or one that is only read through.
        autocast: makes the context in which the model is called.
        facts: are written beside the features.
    """
    if ranks.of_first((folder / ABOUT).is_file()):
        return
    error = None
    try:
        with ExitStack() as stack:
            part = None
            try:
                dataset = build()
                encoded = _encoded(model, data, dataset, batch_size, workers, autocast, ranks)
                if ranks.is_first:
                    part = stack.enter_context(whole_output(folder, overwrite=True))
                    part.mkdir()
            except (Exception, SystemExit) as raised:  # a data set that is broken raises anything
                error = raised
            ranks.raise_together(error)
            if part is None:
                list(_gathered(encoded, ranks, None))
            else:
                _write(part, encoded, ranks, data.name, dataset, facts)
    except (Exception, SystemExit) as raised:
        error = raised
    ranks.raise_together(error)


def _write(part: Path, encoded: Iterator, ranks: EvaluationRanks, name: str, dataset: object, facts: dict) -> None:
    """Writes the features as they come: what is in memory does not grow with the data set, but for the targets."""
    shape, dtype, targets, size = [], "", [], 0
    total = None if isinstance(dataset, IterableDataset) else len(dataset)
    with (
        open(part / IMAGES, "wb") as file,
        tqdm(total=total, desc=name, unit=" pictures", leave=False, disable=None) as progress,
    ):

        def write(images: Tensor) -> None:
            file.write(images.contiguous().view(torch.uint8).numpy())

        for images, some in _gathered(encoded, ranks, write):
            shape, dtype, size = list(images.shape[1:]), str(images.dtype).split(".")[1], size + len(images)
            targets += [some] if isinstance(some, Tensor) else some
            progress.update(len(images))
    if size == 0:
        raise InputError("it holds no picture")
    torch.save(torch.cat(targets) if isinstance(targets[0], Tensor) else targets, part / TARGETS)
    write_json(part / ABOUT, {"shape": [size, *shape], "dtype": dtype, **facts})


def _encoded(model, data, dataset, batch_size, workers, autocast, ranks) -> Iterator[tuple[Tensor, object]]:
    """Yields (features, targets) of every batch that is this rank's."""
    collate = shard_samples.collate if data.shards else get_dataset_collate_fn(data.name)
    device = next(model.parameters()).device
    if isinstance(dataset, IterableDataset):  # in its own order, which several workers would change
        loader = DataLoader(dataset, batch_size=batch_size, num_workers=min(workers, 1), collate_fn=collate)
        mine = (batch for place, batch in enumerate(loader) if place % ranks.world_size == ranks.rank)
    else:
        places = range(ranks.rank * batch_size, len(dataset), ranks.world_size * batch_size)
        batches = [range(start, min(start + batch_size, len(dataset))) for start in places]
        mine = DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=collate)
    for images, targets in mine:
        several = images.shape[:2] if images.dim() == 5 else None  # pictures a sample
        with torch.no_grad(), autocast():
            features = model.encode_image((images.flatten(0, 1) if several else images).to(device)).cpu()
        targets = targets if isinstance(targets, Tensor) else [list(captions) for captions in targets]
        yield features.unflatten(0, several) if several else features, targets


def _gathered(encoded: Iterator, ranks: EvaluationRanks, write: Callable[[Tensor], None] | None) -> Iterator:
    """Yields on the first rank all batches in order, written with `write`, and nothing on the others."""
    ended = False
    while not ended:
        mine, error = None, None
        try:
            mine = next(encoded, None)
        except (Exception, SystemExit) as raised:  # a broken picture raises anything
            error = raised
        ranks.raise_together(error)
        batches = ranks.on_first(mine)
        ended, error = False, None
        if batches is not None:
            ended = batches[-1] is None  # the last rank is the first to run out
            try:
                for batch in filter(None, batches):
                    write(batch[0])
            except OSError as raised:
                error = raised
        ranks.raise_together(error)
        ended = ranks.of_first(ended)
        if batches is not None:
            yield from filter(None, batches)
