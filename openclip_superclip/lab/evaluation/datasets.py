"""The data sets of the suites, found in the user's folder, and the image features of their
splits."""

import functools
import hashlib
import io
import json
import os
import sys
import tarfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from clip_benchmark.datasets import builder, imagenetv2
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torch.utils.data._utils.collate import default_convert
from torchvision.datasets import VOCSegmentation
from tqdm import tqdm
from webdataset import WebDataset, autodecode
from webdataset.filters import default_collation_fn
from webdataset.tariterators import group_by_keys, tar_file_expander, tarfile_samples

from ...data.images import open_image
from ...data.tar_shards import numbered_members, pickle_as_bytes
from ...environment import replaced
from ...errors import InputError, reason
from .suites import SUITES

SEGMENTATION, DEPTH = "segmentation", "depth"
DENSE = (SEGMENTATION, DEPTH)
KINDS = {  # of data, by task
    "zeroshot_classification": ("classification", "multilabel"),
    "zeroshot_retrieval": ("retrieval",),
    "linear_probe": ("classification",),
    "dense": DENSE,
}


class Data(NamedTuple):
    """A data set in the user's folder: shards in CLIP_benchmark's layout, or a root of its
    built-in data sets."""

    name: str
    folder: Path
    shards: bool
    kind: str  # classification, multilabel, retrieval, segmentation or depth

    def build(self, transform: Callable, split: str, task: str):
        """Returns CLIP_benchmark's data set. Missing files are an error; nothing is downloaded."""
        if self.kind in DENSE:
            return DenseSet(self.folder, split, transform)
        shards = shards_of(self.folder / split) if self.shards else []
        name = f"wds/{self.name}" if self.shards else self.name
        with (
            replaced(builder, call=_refuse),  # wget, even with `download=False`
            replaced(imagenetv2, requests=SimpleNamespace(get=_refuse)),
            replaced(
                autodecode, default_pre_handlers=[*autodecode.default_pre_handlers, pickle_as_bytes]
            ),
            redirect_stdout(sys.stderr),  # CLIP_benchmark prints
            warnings.catch_warnings(),
        ):
            dataset = builder.build_dataset(
                name,
                root=str(self.folder),
                transform=transform,
                split=split,
                download=False,
                task=task,
            )
        return ShardSamples(dataset, shards) if self.shards else dataset

    def collate(self, samples: list[tuple]) -> list:
        """Returns a batch as CLIP_benchmark makes it."""
        if self.shards:
            return default_convert(default_collation_fn(samples))
        return builder.get_dataset_collate_fn(self.name)(samples)

    def files_id(self) -> str:
        """Returns a digest of the names, sizes and times of its files, which changes if the data
        set does."""
        folders = os.walk(self.folder, followlinks=True)
        files = sorted(os.path.join(folder, name) for folder, _, names in folders for name in names)
        found = [
            (os.path.relpath(file, self.folder), os.stat(file))
            for file in files
            if os.path.exists(file)
        ]
        facts = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in found]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def select_datasets(
    folder: Path, suites: list[str], names: list[str]
) -> tuple[list[tuple[Data, str]], list[str]]:
    """Returns the data sets that `suites` evaluate in `folder`, each with its task, and missing
    ones, with the reason.

    `names` replace the suites' own data sets. Raises InputError if one is missing, or if there is
    nothing to evaluate.
    """
    for suite in suites:
        if suite not in SUITES:
            raise InputError(
                f"--suite: there is no suite '{suite}'; expected some of {','.join(SUITES)}"
            )
    if not folder.is_dir():
        raise InputError(f"--data: there is no folder {folder}")
    content = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    chosen, absent = [], []
    for suite in dict.fromkeys(suites):
        task, listed = SUITES[suite]
        for name in dict.fromkeys(name.removeprefix("wds/") for name in names or listed):
            data = find_data(folder, name)
            if data is None and names:
                raise InputError(f"--datasets: {folder} contains no {name}; it contains {content}")
            if data is None:
                absent.append(f"{name} ({suite}: not found)")
            elif data.kind not in KINDS[task]:
                if not (names and any(data.kind in KINDS[SUITES[other][0]] for other in suites)):
                    source = "; see its dataset_type.txt" * data.shards
                    absent.append(f"{name} ({suite}: it is of kind {data.kind}{source})")
            elif task == "linear_probe" and data.shards and not (data.folder / "train").is_dir():
                absent.append(f"{name} ({suite}: it has no train/)")
            else:
                chosen.append((data, data.kind if task == "dense" else task))
    if not chosen:
        reasons = ", ".join(one for one in absent if not one.endswith(" not found)"))
        expected = (
            "expected folders such as imagenet1k/ with test/nshards.txt and test/0.tar, or "
            f"--datasets NAME; it contains {content}"
        )
        raise InputError(
            f"--data: {folder} contains nothing for --suite {','.join(suites)}; "
            f"{reasons or expected}"
        )
    return chosen, absent


def find_data(folder: Path, name: str) -> Data | None:
    """Returns the data set with CLIP_benchmark's name, or with the name of its published copy,
    or None."""
    dashed = name.replace("/", "-")
    places = (name, f"wds/{name}", dashed, f"wds_{dashed}", f"wds_{dashed}_test")
    found = next((folder / place for place in places if (folder / place).is_dir()), None)
    if found is None:
        return None
    if kind := dense_kind(found):
        return Data(name, found, False, kind)
    if any((found / "test").glob("*.tar")) or (found / "test" / "nshards.txt").is_file():
        type_file = found / "dataset_type.txt"
        kind = type_file.read_text().strip().lower() if type_file.is_file() else "classification"
        return Data(name, found, True, kind)
    if builder.get_dataset_default_task(name) == "zeroshot_retrieval":
        return Data(name, found, False, "retrieval")
    return Data(
        name, found, False, "multilabel" if name.endswith("multilabel") else "classification"
    )


def _refuse(source, **_):
    raise FileNotFoundError(
        f"files are missing, and CLIP_benchmark would have to get them ({source})"
    )


def shards_of(split: Path) -> list[Path]:
    """Returns a split's shards; InputError if nshards.txt is not a number, or is smaller than
    the number of shards."""
    text = (split / "nshards.txt").read_text().strip()
    if not text.isdecimal():
        raise InputError(f"{split}/nshards.txt is '{text[:20]}'; expected the number of shards")
    number = int(text)
    left_out = sorted(
        file.name
        for file in split.glob("*.tar")
        if file.stem.isdigit() and int(file.stem) >= number
    )
    if left_out:
        raise InputError(
            f"{split}/nshards.txt says {number}, which leaves out {left_out[0]}; expected all "
            "shards"
        )
    return [split / f"{index}.tar" for index in range(number)]


class ShardSamples(Dataset):
    """CLIP_benchmark's WebDataset with random access, so that any number of workers reads it in the
    same order.

    Samples are decoded and transformed by CLIP_benchmark's own pipeline. Only tar headers are read
    to find them.
    """

    def __init__(self, dataset: WebDataset, shards: list[Path]):
        is_reader = [getattr(stage, "f", None) is tarfile_samples for stage in dataset.pipeline]
        self.stages = dataset.pipeline[is_reader.index(True) + 1 :]
        self.classes, self.templates, self.shards = dataset.classes, dataset.templates, shards

    @functools.cached_property
    def places(self) -> np.ndarray:
        """Index of the shard, first byte and end of every sample, int64 [N, 3]."""
        found = [
            (number, *place)
            for number, shard in enumerate(self.shards)
            for place in _samples_of(shard)
        ]
        return np.array(found, dtype=np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple:
        number, start, end = self.places[index].tolist()
        with open(self.shards[number], "rb") as file:
            content = os.pread(file.fileno(), end - start, start)
        source = {"url": str(self.shards[number]), "stream": io.BytesIO(content)}
        samples = group_by_keys(tar_file_expander(iter([source])))
        for stage in self.stages:
            samples = stage(samples)
        try:
            return next(iter(samples))
        except Exception as error:  # a broken sample can raise any exception
            place = np.sum(self.places[:index, 0] == number)
            raise InputError(f"{self.shards[number]}, sample {place}: {reason(error)}") from error


def _samples_of(shard: Path) -> list[tuple[int, int]]:
    """Returns first byte and end of a shard's samples: consecutive files that differ only in the
    extension."""
    found, last = [], -1
    try:
        with tarfile.open(shard, "r:") as tar:
            for number, key, _, member in numbered_members(tar):
                if not key.startswith("__"):  # which CLIP_benchmark does not read
                    end = (
                        member.offset_data
                        + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    )
                    found.append((found.pop()[0] if number == last else member.offset, end))
                    last = number
    except tarfile.TarError as error:
        raise InputError(f"{shard} is not a complete, uncompressed tar file ({error})") from error
    return found


NO_CLASS = 255  # of a pixel
VOC_CLASSES, ADE_CLASSES = 21, 150
ADE_SPLITS, VOC_SPLITS = (
    {"train": "training", "test": "validation"},
    {"train": "train", "test": "val"},
)


def dense_kind(folder: Path) -> str | None:
    """Returns the kind of a data set with pixel labels; None for other folders."""
    if (folder / "VOCdevkit" / "VOC2012").is_dir() or (
        folder / "annotations" / "training"
    ).is_dir():
        return SEGMENTATION
    return DEPTH if (folder / "train" / "depths").is_dir() else None


class DenseSet(Dataset):
    """The images of a split (train or test), transformed, with their indices; `label` reads
    their pixels' labels."""

    def __init__(self, folder: Path, split: str, transform: Callable):
        self.transform, self.classes = transform, None
        self.num_classes, self.first_class = 0, 0
        if (folder / "VOCdevkit" / "VOC2012").is_dir():
            voc = VOCSegmentation(str(folder), year="2012", image_set=VOC_SPLITS[split])
            self.images, self.labels, self.num_classes = voc.images, voc.masks, VOC_CLASSES
        elif dense_kind(folder) == SEGMENTATION:
            part = ADE_SPLITS[split]
            self.images, self.labels = _pairs(
                folder / "images" / part, folder / "annotations" / part
            )
            names = folder / "classes.txt"
            self.num_classes = (
                len(names.read_text().splitlines()) if names.is_file() else ADE_CLASSES
            )
            self.first_class = 1  # 0 is no class
        else:
            self.images, self.labels = _pairs(folder / split / "images", folder / split / "depths")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with open_image(self.images[index]) as image:
            return self.transform(image.convert("RGB")), index

    def label(self, index: int) -> Tensor:
        """Returns the labels of an image's pixels; InputError if they do not match the image.

        These are classes, int64 [H, W], NO_CLASS for none, or depths in metres, float32 [H, W], 0
        for none.
        """
        file = self.labels[index]
        with open_image(self.images[index]) as image, open_image(file) as labels:
            size, values = image.size, np.array(labels)
        if values.shape != size[::-1]:
            raise InputError(
                f"{file} has the shape {list(values.shape)}; expected its image's, "
                f"{list(size[::-1])}"
            )
        if not self.num_classes:
            return torch.from_numpy(values.astype(np.float32) / 1000)  # of millimetres
        classes = values.astype(np.int64) - self.first_class
        is_none = (classes < 0) | (classes == NO_CLASS) | (values == NO_CLASS)
        largest = classes[~is_none].max(initial=0)
        if largest >= self.num_classes:
            raise InputError(
                f"{file} contains the class {largest + self.first_class}; expected "
                f"{self.num_classes} classes"
            )
        return torch.from_numpy(np.where(is_none, NO_CLASS, classes))


def _pairs(images: Path, labels: Path) -> tuple[list[str], list[str]]:
    """Returns images and labels with equal names; InputError for an image without a label."""
    found = [
        path
        for path in sorted(images.glob("*"))
        if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    ]
    wanted = [labels / f"{path.stem}.png" for path in found]
    if missing := [path for path in wanted if not path.is_file()]:
        raise InputError(f"there is no {missing[0]}; expected a label for every image of {images}")
    if not found:
        raise InputError(
            f"{images} contains no image; expected .jpg or .png, and its label in {labels}"
        )
    return [*map(str, found)], [*map(str, wanted)]


SEED = 0  # CLIP_benchmark's default
RECALL_K = [1, 5]


class Settings(NamedTuple):
    """How to evaluate; the defaults of the command line are CLIP_benchmark's."""

    device: str  # cpu or cuda
    precision: str  # amp or fp32
    batch_size: int
    workers: int
    probe_lr: float
    probe_epochs: int
    dense_lr: float
    dense_epochs: int

    def of_task(self, task: str) -> dict:
        """Returns the settings on which the metrics of a task depend."""
        probe = {
            "batch_size": self.batch_size,
            "lr": self.probe_lr,
            "epochs": self.probe_epochs,
            "seed": SEED,
        }
        more = {
            "zeroshot_retrieval": {"recall_k": RECALL_K},
            "linear_probe": probe,
            **{kind: {"lr": self.dense_lr, "epochs": self.dense_epochs} for kind in DENSE},
        }
        return {"precision": self.precision, **more.get(task, {})}

    def autocast(self) -> torch.autocast:
        """Returns the context in which CLIP_benchmark calls a model."""
        return torch.autocast(self.device, enabled=self.precision == "amp")


class Features(NamedTuple):
    """The features of a split's images, before any normalisation, in the data set's order."""

    images: Tensor  # [N, D], or patch tokens [N, D, h, w]
    targets: Tensor | list[list[str]]  # labels [N] or [N, classes], or the captions of each image


def encode(model: nn.Module, data: Data, dataset: Dataset, settings: Settings) -> Features:
    """Returns the features of all images of a split; InputError if it is empty or if they are
    non-finite."""
    # Several workers would change the order of an iterable data set.
    workers = min(settings.workers, 1) if isinstance(dataset, IterableDataset) else settings.workers
    loader = DataLoader(
        dataset, batch_size=settings.batch_size, num_workers=workers, collate_fn=data.collate
    )
    parts, targets = [], []
    for images, some in tqdm(loader, desc=data.name, unit=" batches", leave=False, disable=None):
        with torch.no_grad(), settings.autocast():
            features = model.encode_image(images.to(settings.device))
        parts.append(finite(features, "images").cpu())
        targets += [some] if isinstance(some, Tensor) else [list(captions) for captions in some]
    if not parts:
        raise InputError("it contains no image")
    return Features(
        torch.cat(parts), torch.cat(targets) if isinstance(targets[0], Tensor) else targets
    )


def finite(features: Tensor, of: str) -> Tensor:
    """Returns the features; InputError if they are non-finite."""
    if not torch.isfinite(features).all():
        raise InputError(f"the model's features of {of} are not finite numbers (NaN or infinite)")
    return features
