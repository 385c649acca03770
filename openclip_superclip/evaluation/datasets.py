"""The data sets of the suites, found in the user's folder."""

import functools
import hashlib
import io
import json
import os
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from clip_benchmark.datasets import builder, imagenetv2
from huggingface_hub import constants
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data._utils.collate import default_convert
from torchvision.datasets import VOCSegmentation
from webdataset import WebDataset
from webdataset.filters import default_collation_fn
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander, tarfile_samples

from ..data.images import open_image
from ..environment import replaced, require
from ..errors import InputError
from .suites import SUITES

SEGMENTATION, DEPTH = "segmentation", "depth"
DENSE = (SEGMENTATION, DEPTH)
FITTED = ("linear_probe", "few_shot", "knn")  # tasks that fit a classifier to the train split
KINDS = {  # of data, by task
    "zeroshot_retrieval": ("retrieval",), "image_caption_selection": ("compositional",), "dense": DENSE,
}  # fmt: skip


class Data(NamedTuple):
    """A data set in the user's folder: shards in CLIP_benchmark's layout, or a root of its built-in data sets."""

    name: str
    folder: Path
    shards: bool
    kind: str  # classification, multilabel, retrieval, compositional, segmentation or depth

    def build(self, transform: Callable, split: str, task: str):
        """Returns CLIP_benchmark's data set. Missing files are an error; nothing is downloaded."""
        if self.kind in DENSE:
            return DenseSet(self.folder, split, transform)
        if self.name == "winoground" and not self.shards:
            require("Winoground", "winoground", "datasets")
        shards = shards_of(self.folder / split) if self.shards else []
        name = f"wds/{self.name}" if self.shards else self.name
        task = "linear_probe" if task in FITTED else task
        with _no_downloads(), redirect_stdout(sys.stderr), warnings.catch_warnings():  # CLIP_benchmark prints
            dataset = builder.build_dataset(
                name, root=str(self.folder), transform=transform, split=split, download=False, task=task
            )
        return ShardSamples(dataset, shards) if self.shards else dataset

    def collate(self, samples: list[tuple]) -> list:
        """Returns a batch as CLIP_benchmark makes it."""
        if self.shards:
            return default_convert(default_collation_fn(samples))
        return builder.get_dataset_collate_fn(self.name)(samples)

    def files_id(self, splits: tuple[str, ...], images_only: bool = False) -> str:
        """Returns a digest of the names, sizes and times of its files, which changes if the data set does.

        For shards, it covers the splits, and the files beside them unless `images_only`; for CLIP_benchmark's built-in
        data sets, all files below the root.
        """
        beside = [] if images_only and self.shards else [entry.path for entry in os.scandir(self.folder)]
        folders = [self.folder / split for split in splits] if self.shards else [self.folder]
        files = {*filter(os.path.isfile, beside), *(file for folder in folders for file in _files_below(folder))}
        found = [(os.path.relpath(file, self.folder), os.stat(file)) for file in sorted(files) if os.path.exists(file)]
        facts = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in found]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


class Selection(NamedTuple):
    """Data sets to evaluate, each with its task, and missing ones, with the reason."""

    chosen: list[tuple[Data, str]]
    absent: list[str]


def select_datasets(folder: Path, suites: list[str], names: list[str]) -> Selection:
    """Returns what `suites` evaluate in `folder`: the data sets in `names`, by default the suites' own.

    Raises InputError for a missing data set of `names`, and if there is nothing to evaluate.
    """
    for suite in suites:
        if suite not in SUITES:
            raise InputError(f"--suite: there is no suite '{suite}'; expected some of {','.join(SUITES)}")
    if not folder.is_dir():
        raise InputError(f"--data: there is no folder {folder}")
    chosen, absent, unfit = [], [], {}
    for suite in dict.fromkeys(suites):
        task, listed = SUITES[suite]
        for name in names or listed:
            data = find_data(folder, name)
            if data is None and names:
                raise InputError(f"--datasets: {folder} holds no {name}; it holds {_held(folder)}")
            if data is None:
                absent.append(f"{name} ({suite}: not there)")
            elif data.kind not in KINDS.get(task, ("classification", "multilabel")):
                layouts = "it has none of VOCdevkit/VOC2012, annotations/training and train/depths"
                unfit[name] = f"{name} ({suite}: {layouts if task == 'dense' else f'it is for {data.kind}'})"
            elif task in FITTED and data.kind == "multilabel":
                absent.append(f"{name} ({suite}: it has several labels per image)")
            elif task in FITTED and data.shards and not (data.folder / "train").is_dir():
                absent.append(f"{name} ({suite}: it has no train/ to fit to)")
            elif (data, of_data := data.kind if task == "dense" else task) not in chosen:
                chosen.append((data, of_data))
    evaluated = {data.name for data, _ in chosen}
    absent += [reason for name, reason in unfit.items() if name.removeprefix("wds/") not in evaluated]
    if not chosen and unfit:
        raise InputError(f"--suite {','.join(suites)} measures nothing of {folder}: {', '.join(unfit.values())}")
    if not chosen:
        raise InputError(
            f"--data: {folder} holds nothing for --suite {','.join(suites)}; expected folders such as "
            f"imagenet1k/ with test/nshards.txt and test/0.tar, or --datasets NAME; it holds {_held(folder)}"
        )
    return Selection(chosen, absent)


def find_data(folder: Path, name: str) -> Data | None:
    """Returns the data set with CLIP_benchmark's name, or with the name of its published copy, or None."""
    name = name.removeprefix("wds/")
    if name.startswith("sugar_crepe/") and (folder / f"{name}.json").is_file():  # the seven share their images
        return Data(name, folder / "sugar_crepe", False, "compositional")
    dashed = name.replace("/", "-")
    for place in (name, f"wds/{name}", dashed, f"wds_{dashed}", f"wds_{dashed}_test"):
        if (folder / place).is_dir():
            return _data(name, folder / place)
    return None


def _data(name: str, folder: Path) -> Data:
    if kind := dense_kind(folder):
        return Data(name, folder, False, kind)
    task = builder.get_dataset_default_task(name)
    kinds = {"image_caption_selection": "compositional", "zeroshot_retrieval": "retrieval"}
    if any((folder / "test").glob("*.tar")) or (folder / "test" / "nshards.txt").is_file():
        type_file = folder / "dataset_type.txt"
        kind = type_file.read_text().strip().lower() if type_file.is_file() else "classification"
        return Data(name, folder, True, "compositional" if task == "image_caption_selection" else kind)
    return Data(name, folder, False, kinds.get(task, "multilabel" if name.endswith("multilabel") else "classification"))


def _held(folder: Path) -> str:
    depths = ("*", "*/*", "*/*/*")  # wds/vtab/cifar10 is the deepest
    found = [path.parents[1] for depth in depths for path in folder.glob(f"{depth}/test/nshards.txt")]
    found = found or sorted(folder.iterdir())[:5]
    return ", ".join(sorted(str(path.relative_to(folder)) for path in found)) or "nothing"


def _files_below(folder: Path) -> Iterator[str]:
    """Yields all files below a folder; follows links, but visits each folder once."""
    entered = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        yield from (os.path.join(place, file) for file in files)


@contextmanager
def _no_downloads() -> Iterator[None]:
    """Makes CLIP_benchmark raise an error instead of calling wget, as it does even with `download=False`."""

    def refuse(source, **_):
        raise FileNotFoundError(f"files are missing, and CLIP_benchmark would have to get them ({source})")

    with (
        replaced(builder, call=refuse),
        replaced(imagenetv2, requests=SimpleNamespace(get=refuse)),
        replaced(constants, HF_HUB_OFFLINE=True),  # of huggingface_hub: Winoground is read from its cache
    ):
        yield


def shards_of(split: Path) -> list[Path]:
    """Returns a split's shards; InputError if nshards.txt is not a number, or is smaller than the number of shards."""
    text = (split / "nshards.txt").read_text().strip()
    if not text.isdecimal():
        raise InputError(f"{split}/nshards.txt is '{text[:20]}'; expected the number of shards")
    number = int(text)
    left_out = sorted(file.name for file in split.glob("*.tar") if file.stem.isdigit() and int(file.stem) >= number)
    if left_out:
        raise InputError(f"{split}/nshards.txt says {number}, which leaves out {left_out[0]}; expected all shards")
    return [split / f"{index}.tar" for index in range(number)]


class ShardSamples(Dataset):
    """CLIP_benchmark's WebDataset with random access, so that ranks and workers can share its samples.

    Samples are decoded and transformed by CLIP_benchmark's own pipeline. Only tar headers are read to find them.
    """

    def __init__(self, dataset: WebDataset, shards: list[Path]):
        is_reader = [getattr(stage, "f", None) is tarfile_samples for stage in dataset.pipeline]
        self.stages = dataset.pipeline[is_reader.index(True) + 1 :]
        self.classes, self.templates, self.shards = dataset.classes, dataset.templates, shards

    @functools.cached_property
    def places(self) -> np.ndarray:
        """Index of the shard, first byte and end of every sample, int64 [N, 3]."""
        found = [(number, *place) for number, shard in enumerate(self.shards) for place in _samples_of(shard)]
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
        return next(iter(samples))


def _samples_of(shard: Path) -> list[tuple[int, int]]:
    """Returns first byte and end of a shard's samples: consecutive files that differ only in the extension."""
    found, key = [], None
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                tar.members = []  # otherwise it keeps all headers in memory
                prefix = base_plus_ext(member.name)[0] if member.isreg() and not member.name.startswith("__") else None
                if prefix is None:
                    continue
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                start = found.pop()[0] if prefix == key else member.offset
                found.append((start, end))
                key = prefix
    except tarfile.TarError as error:
        raise InputError(f"{shard} is not a complete, uncompressed tar file ({error})") from error
    return found


NO_CLASS = 255  # of a pixel
VOC_CLASSES, ADE_CLASSES = 21, 150
ADE_SPLITS, VOC_SPLITS = {"train": "training", "test": "validation"}, {"train": "train", "test": "val"}


def dense_kind(folder: Path) -> str | None:
    """Returns the kind of a data set with pixel labels; None for other folders."""
    if (folder / "VOCdevkit" / "VOC2012").is_dir() or (folder / "annotations" / "training").is_dir():
        return SEGMENTATION
    return DEPTH if (folder / "train" / "depths").is_dir() else None


class DenseSet(Dataset):
    """The images of a split, transformed, with their indices; `label` reads the labels of their pixels.

    Args:
        split: train or test.
    """

    def __init__(self, folder: Path, split: str, transform: Callable):
        self.transform, self.classes = transform, None
        self.num_classes, self.first_class = 0, 0
        if (folder / "VOCdevkit" / "VOC2012").is_dir():
            voc = VOCSegmentation(str(folder), year="2012", image_set=VOC_SPLITS[split])
            self.images, self.labels, self.num_classes = voc.images, voc.masks, VOC_CLASSES
        elif dense_kind(folder) == SEGMENTATION:
            part = ADE_SPLITS[split]
            self.images, self.labels = _pairs(folder / "images" / part, folder / "annotations" / part)
            names = folder / "classes.txt"
            self.num_classes = len(names.read_text().splitlines()) if names.is_file() else ADE_CLASSES
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

        These are classes, int64 [H, W], NO_CLASS for none, or depths in metres, float32 [H, W], 0 for none.
        """
        file = self.labels[index]
        with open_image(self.images[index]) as image, open_image(file) as labels:
            size, values = image.size, np.array(labels)
        if values.shape[1::-1] != size:
            found, expected = ("{} x {}".format(*pixels) for pixels in (values.shape[1::-1], size))
            raise InputError(f"{file} has {found} pixels; expected {expected}, as its image has")
        if values.ndim != 2:
            raise InputError(f"{file} has {values.shape[-1]} channels; expected one number per pixel")
        if not self.num_classes:
            return torch.from_numpy(values.astype(np.float32) / 1000)  # of millimetres
        classes = values.astype(np.int64) - self.first_class
        is_none = (classes < 0) | (classes == NO_CLASS) | (values == NO_CLASS)
        largest = classes[~is_none].max(initial=0)
        if largest >= self.num_classes:
            number = largest + self.first_class
            raise InputError(f"{file} holds the class {number}; expected {self.num_classes} classes")
        return torch.from_numpy(np.where(is_none, NO_CLASS, classes))


def _pairs(images: Path, labels: Path) -> tuple[list[str], list[str]]:
    """Returns images and labels with equal names; InputError for an image without a label."""
    found = [path for path in sorted(images.glob("*")) if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    wanted = [labels / f"{path.stem}.png" for path in found]
    if missing := [path for path in wanted if not path.is_file()]:
        raise InputError(f"there is no {missing[0]}; expected a label for every image of {images}")
    if not found:
        raise InputError(f"{images} holds no image; expected .jpg or .png, and its label in {labels}")
    return [*map(str, found)], [*map(str, wanted)]
