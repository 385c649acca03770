"""Image features, computed once per model and split for all measures and cached beside the results."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from ..errors import InputError
from ..files import whole_output, write_json
from .datasets import Data

TIMEOUT = timedelta(days=7)  # the other ranks wait while the first one computes the metrics


class EvaluationRanks:
    """This process among those of torchrun. All of them must make the same calls, in the same order."""

    def __init__(self):
        self.world_size, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        if self.world_size > 1:
            dist.init_process_group("gloo", timeout=TIMEOUT)
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

    def on_first(self, value: Any) -> list[Any]:
        """Returns the values of all ranks on the first one, an empty list on the others."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size if self.is_first else None
        dist.gather_object(value, values, dst=0)
        return values or []

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raises an exception of the block on any rank on all ranks."""
        error = None
        try:
            yield
        except (Exception, SystemExit) as raised:  # a broken data set can raise any exception
            error = raised
        self.raise_together(error)

    def raise_together(self, error: BaseException | None) -> None:
        """Raises this rank's error or, if only others failed, the first of theirs."""
        errors = [error]
        if self.world_size > 1:
            texts = [None] * self.world_size
            dist.all_gather_object(texts, None if error is None else f"{type(error).__name__}: {error}")
            errors += [RuntimeError(text) for text in texts if text is not None]
        for found in errors:
            if found is not None:
                raise found

    def end(self) -> None:
        """Waits for all ranks and ends their group."""
        if self.world_size > 1:
            dist.barrier()
            dist.destroy_process_group()


ABOUT, IMAGES, TARGETS = "about.json", "images.bin", "targets.pt"


class Features(NamedTuple):
    """The features of a split's images, before any normalisation, in the data set's order.

    Attributes:
        images: [N, D], or [N, images, D] if a sample has several; memory-mapped.
        targets: labels [N] or [N, classes], or the captions of each sample.
    """

    images: Tensor
    targets: Tensor | list[list[str]]


def read_features(folder: Path) -> Features:
    """Returns cached features."""
    about = json.loads((folder / ABOUT).read_text())
    shape, dtype = about["shape"], getattr(torch, about["dtype"])
    images = torch.from_file(str(folder / IMAGES), size=torch.Size(shape).numel(), dtype=dtype).view(shape)
    return Features(images, torch.load(folder / TARGETS, weights_only=True))


def finite(features: Tensor, of: str) -> Tensor:
    """Returns the features; InputError if they are non-finite."""
    if not torch.isfinite(features).all():
        raise InputError(f"the model's features of {of} are not finite numbers (NaN or infinite)")
    return features


def cache_features(
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
    """Computes the features of a split, all ranks together, unless they are cached in `folder`.

    Batches are assigned to the ranks in turn and written in order, so that the features equal those of a single rank
    exactly and memory use does not depend on the number of images. An error of any rank is raised on all.

    Args:
        build: returns CLIP_benchmark's data set, with random access or iterable.
        autocast: returns the context in which to call the model.
        facts: a record to write beside the features.
    """
    if ranks.of_first((folder / ABOUT).is_file()):
        return
    shape, dtype, targets, size = [], "", [], 0
    with ExitStack() as stack:
        with ranks.together():
            dataset = build()
            encoded = _encoded(model, data, dataset, batch_size, workers, autocast, ranks)
            if ranks.is_first:
                part = stack.enter_context(whole_output(folder, overwrite=True))
                part.mkdir()
                file = stack.enter_context(open(part / IMAGES, "wb"))
                total = None if isinstance(dataset, IterableDataset) else len(dataset)
                progress = tqdm(total=total, desc=data.name, unit=" images", leave=False, disable=None)
                stack.enter_context(progress)
        ended = False
        while not ended:
            with ranks.together():
                batch = next(encoded, None)
            batches = ranks.on_first(batch)
            with ranks.together():
                for images, some in filter(None, batches):
                    file.write(images.contiguous().view(torch.uint8).numpy())
                    shape, dtype, size = list(images.shape[1:]), str(images.dtype).split(".")[1], size + len(images)
                    targets += [some] if isinstance(some, Tensor) else some
                    progress.update(len(images))
            ended = ranks.of_first(batches[-1:] == [None])  # the last rank is the first to run out of batches
        if ranks.is_first:
            if size == 0:
                raise InputError("it holds no image")
            torch.save(torch.cat(targets) if isinstance(targets[0], Tensor) else targets, part / TARGETS)
            write_json(part / ABOUT, {"shape": [size, *shape], "dtype": dtype, **facts})


def _encoded(model, data, dataset, batch_size, workers, autocast, ranks) -> Iterator[tuple[Tensor, object]]:
    """Yields (features, targets) of this rank's batches."""
    device = next(model.parameters()).device
    if isinstance(dataset, IterableDataset):  # several workers would change the order
        loader = DataLoader(dataset, batch_size=batch_size, num_workers=min(workers, 1), collate_fn=data.collate)
        mine = (batch for index, batch in enumerate(loader) if index % ranks.world_size == ranks.rank)
    else:
        starts = range(ranks.rank * batch_size, len(dataset), ranks.world_size * batch_size)
        batches = [range(start, min(start + batch_size, len(dataset))) for start in starts]
        mine = DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=data.collate)
    for images, targets in mine:
        several = images.shape[:2] if images.dim() == 5 else None  # images per sample
        with torch.no_grad(), autocast():
            features = model.encode_image((images.flatten(0, 1) if several else images).to(device))
        features = finite(features, "images").cpu()
        targets = targets if isinstance(targets, Tensor) else [list(captions) for captions in targets]
        yield features.unflatten(0, several) if several else features, targets
