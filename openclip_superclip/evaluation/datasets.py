"""What to evaluate on: the suites' data sets, looked for in the user's folder."""

import functools
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def collate(samples: list[tuple]) -> list:
    """Returns a batch as CLIP_benchmark's pipeline makes it."""
    return default_convert(default_collation_fn(samples))


class _Piece(NamedTuple):
    """Where the files of one sample lie in a shard, in bytes."""

    start: int
    end: int


class ShardSamples(Dataset):
    """CLIP_benchmark's WebDataset, asked for samples by their place: ranks and workers then share what they like.

    Each goes through CLIP_benchmark's own pipeline: decoding, transform, label. Only headers are read to find it.
    """

    def __init__(self, dataset: WebDataset, split: Path, num_shards: int):
        reader = next(place for place, stage in enumerate(dataset.pipeline) if _reads_tar(stage))
        self.stages = dataset.pipeline[reader + 1 :]
        self.classes, self.templates = dataset.classes, dataset.templates
        self.shards = [split / f"{number}.tar" for number in range(num_shards)]

    @functools.cached_property
    def pieces(self) -> np.ndarray:
        """Number of the shard, first byte and end of every sample, int64 [N, 3]."""
        found = [(number, *piece) for number, shard in enumerate(self.shards) for piece in _pieces(shard)]
        return np.array(found, dtype=np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, place: int) -> tuple:
        number, start, end = self.pieces[place].tolist()
        with open(self.shards[number], "rb") as file:
            content = os.pread(file.fileno(), end - start, start)
        source = {"url": str(self.shards[number]), "stream": io.BytesIO(content)}
        samples = group_by_keys(tar_file_expander(iter([source])))
        for stage in self.stages:
            samples = stage(samples)
        return next(iter(samples))


def _reads_tar(stage) -> bool:
    return getattr(stage, "f", None) is tarfile_samples


def _pieces(shard: Path) -> list[_Piece]:
    """Returns where a shard's samples lie. Files that follow each other and differ in their ending are one sample."""
    found, key = [], None
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                tar.members = []  # or it remembers all that it has seen
                prefix = base_plus_ext(member.name)[0] if member.isreg() and not member.name.startswith("__") else None
                if prefix is None:
                    continue
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if prefix == key:
                    found[-1] = _Piece(found[-1].start, end)
                else:
                    found.append(_Piece(member.offset, end))
                key = prefix
    except tarfile.TarError as error:
        raise InputError(f"{shard} is no whole, uncompressed tar file ({error})") from error
    return found


SEGMENTATION, DEPTH = "segmentation", "depth"
DENSE = (SEGMENTATION, DEPTH)
NO_CLASS = 255  # of a pixel
VOC_CLASSES, ADE_CLASSES = 21, 150
ADE_SPLITS, VOC_SPLITS = {"train": "training", "test": "validation"}, {"train": "train", "test": "val"}
MILLIMETRES = 1000.0  # of a metre, in which depths are kept
PICTURES = (".jpg", ".jpeg", ".png")


def dense_kind(folder: Path) -> str | None:
    """Returns what the pixels of a folder's pictures are labelled with, None where it holds no such data set."""
    if (folder / "VOCdevkit" / "VOC2012").is_dir() or (folder / "annotations" / "training").is_dir():
        return SEGMENTATION
    return DEPTH if (folder / "train" / "depths").is_dir() else None


class DenseSet(Dataset):
    """The pictures of a split, as `transform` makes them, with their places; `label` reads what their pixels are.

    Args:
        split: train or test.
    """

    def __init__(self, folder: Path, split: str, transform: Callable):
        self.transform, self.classes = transform, None
        self.num_classes, self.first_class = 0, 0
        if (folder / "VOCdevkit" / "VOC2012").is_dir():
            voc = VOCSegmentation(str(folder), year="2012", image_set=VOC_SPLITS[split])
            self.pictures, self.labels, self.num_classes = voc.images, voc.masks, VOC_CLASSES
        elif dense_kind(folder) == SEGMENTATION:
            place = ADE_SPLITS[split]
            self.pictures, self.labels = _pairs(folder / "images" / place, folder / "annotations" / place)
            names = folder / "classes.txt"
            self.num_classes = len(names.read_text().splitlines()) if names.is_file() else ADE_CLASSES
            self.first_class = 1  # 0 is no class
        else:
            self.pictures, self.labels = _pairs(folder / split / "images", folder / split / "depths")

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        with open_image(self.pictures[place]) as picture:
            return self.transform(picture.convert("RGB")), place

    def label(self, place: int) -> Tensor:
        """Returns the classes of a picture's pixels, int64 [H, W], NO_CLASS where there is none, or their depths in
        metres, float32 [H, W], 0 where there is none. Raises InputError for what is neither."""
        with open_image(self.pictures[place]) as picture, open_image(self.labels[place]) as labels:
            size, values = picture.size, np.array(labels)
        if values.shape[1::-1] != size:
            found, expected = ("{} x {}".format(*pixels) for pixels in (values.shape[1::-1], size))
            raise InputError(f"{self.labels[place]} has {found} pixels; expected {expected}, as its image has")
        if values.ndim != 2:
            raise InputError(f"{self.labels[place]} has {values.shape[-1]} channels; expected one number a pixel")
        if not self.num_classes:
            return torch.from_numpy(values.astype(np.float32) / MILLIMETRES)
        found = values.astype(np.int64) - self.first_class
        none = (found < 0) | (found == NO_CLASS) | (values == NO_CLASS)
        if (wrong := found[~none]).size and wrong.max() >= self.num_classes:
            number = int(wrong.max()) + self.first_class
            raise InputError(f"{self.labels[place]} holds the class {number}; expected {self.num_classes} classes")
        return torch.from_numpy(np.where(none, NO_CLASS, found))


def _pairs(pictures: Path, labels: Path) -> tuple[list[str], list[str]]:
    """Returns pictures and labels of equal names; InputError where one has no other."""
    found = {path.stem: path for path in sorted(pictures.glob("*")) if path.suffix.lower() in PICTURES}
    wanted = {name: labels / f"{name}.png" for name in found}
    if missing := [path for path in wanted.values() if not path.is_file()]:
        raise InputError(f"there is no {missing[0]}; expected a label for every picture of {pictures}")
    if not found:
        raise InputError(f"{pictures} holds no picture; expected .jpg or .png, and its label in {labels}")
    return list(map(str, found.values())), list(map(str, wanted.values()))


FITTED = ("linear_probe", "few_shot", "knn")  # to the split train
NO_LABELS = "it has none of VOCdevkit/VOC2012, annotations/training and train/depths"
KINDS = {  # of data, by task
    "zeroshot_retrieval": ("retrieval",), "image_caption_selection": ("compositional",), "dense": DENSE,
}  # fmt: skip


class Data(NamedTuple):
    """A data set in the user's folder: shards in CLIP_benchmark's layout, or the root of one that it has built in."""

    name: str
    folder: Path
    shards: bool
    kind: str  # classification, multilabel, retrieval, compositional, segmentation or depth

    def build(self, transform: Callable, split: str, task: str):
        """Returns CLIP_benchmark's data set. Nothing is ever downloaded: a root that lacks files is an error."""
        if self.kind in DENSE:
            return DenseSet(self.folder, split, transform)
        if self.name == "winoground" and not self.shards:
            require("Winoground", "winoground", "datasets")
        num_shards = check_shards(self.folder / split) if self.shards else 0
        name = f"wds/{self.name}" if self.shards else self.name
        with _no_downloads():
            dataset = builder.build_dataset(
                name, root=str(self.folder), transform=transform, split=split, download=False, task=task
            )
        return ShardSamples(dataset, self.folder / split, num_shards) if self.shards else dataset

    def files_id(self, splits: tuple[str, ...], pictures_alone: bool = False) -> str:
        """Returns a digest of the names, sizes and times of its files: equal while the data set is the same.

        Of shards only the splits count, and what lies beside them unless the pictures alone matter; of a data set that
        CLIP_benchmark has built in, everything below its root.
        """
        alone = pictures_alone and self.shards
        top = [] if alone else [entry.path for entry in os.scandir(self.folder) if entry.is_file()]
        folders = [self.folder / split for split in splits] if self.shards else [self.folder]
        files = {*top, *(file for folder in folders for file in _files_below(folder))}
        found = [(os.path.relpath(file, self.folder), os.stat(file)) for file in sorted(files) if os.path.exists(file)]
        facts = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in found]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


class Selection(NamedTuple):
    """What the suites ask for: data sets with the task on each, and those that cannot be, with the reason."""

    chosen: list[tuple[Data, str]]
    absent: list[str]


def select_datasets(folder: Path, suites: list[str], names: list[str]) -> Selection:
    """Returns what `suites` evaluate in `folder`: their own data sets or, where there are any, those of `names`.

    Raises InputError for a named data set that is not there, and where nothing is left to evaluate.
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
                unfit[name] = f"{name} ({suite}: {NO_LABELS if task == 'dense' else f'it is for {data.kind}'})"
            elif task in FITTED and data.kind == "multilabel":
                absent.append(f"{name} ({suite}: it has several labels a picture)")
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
    """Returns the data set of that name, as CLIP_benchmark or its copies of the data sets call it, or None."""
    name = name.removeprefix("wds/")
    if name.startswith("sugar_crepe/") and (folder / f"{name}.json").is_file():  # the seven share their pictures
        return Data(name, folder / "sugar_crepe", False, "compositional")
    dashed = name.replace("/", "-")
    for place in (name, f"wds/{name}", dashed, f"wds_{dashed}", f"wds_{dashed}_test"):
        if (folder / place).is_dir():
            return _data(name, folder / place)
    return None


def other_data(folder: Path, selection: Selection) -> list[str]:
    """Returns the names of data sets in `folder` that the selection leaves out."""
    planned = {data.folder for data, _ in selection.chosen}
    return [str(place.relative_to(folder)) for place in _with_shards(folder) if place not in planned]


def _files_below(folder: Path) -> Iterator[str]:
    """Yields all files below a folder; links lead on, but into no folder twice."""
    entered = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        yield from (os.path.join(place, file) for file in files)


def _data(name: str, folder: Path) -> Data:
    if kind := dense_kind(folder):
        return Data(name, folder, False, kind)
    compositional = builder.get_dataset_default_task(name) == "image_caption_selection"
    if any((folder / "test").glob("*.tar")) or (folder / "test" / "nshards.txt").is_file():
        type_file = folder / "dataset_type.txt"
        kind = type_file.read_text().strip().lower() if type_file.is_file() else "classification"
        return Data(name, folder, True, "compositional" if compositional else kind)
    if compositional:
        return Data(name, folder, False, "compositional")
    if builder.get_dataset_default_task(name) == "zeroshot_retrieval":
        return Data(name, folder, False, "retrieval")
    return Data(name, folder, False, "multilabel" if name.endswith("multilabel") else "classification")


def _with_shards(folder: Path) -> list[Path]:
    depths = ("*", "*/*", "*/*/*")  # wds/vtab/cifar10 is the deepest
    return sorted(path.parent.parent for depth in depths for path in folder.glob(f"{depth}/test/nshards.txt"))


def _held(folder: Path) -> str:
    names = [str(path.relative_to(folder)) for path in _with_shards(folder)]
    return ", ".join(names) or ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"


@contextmanager
def _no_downloads() -> Iterator[None]:
    """CLIP_benchmark calls wget where files are missing, whatever `download` says; here it raises instead."""

    def refuse(source, **_):
        raise FileNotFoundError(f"files are missing, and CLIP_benchmark would have to get them ({source})")

    with (
        replaced(builder, call=refuse),
        replaced(imagenetv2, requests=SimpleNamespace(get=refuse)),
        replaced(constants, HF_HUB_OFFLINE=True),  # of huggingface_hub: Winoground comes out of its cache
    ):
        yield


def check_shards(split: Path) -> int:
    """Returns the number of shards; InputError where nshards.txt holds none, or leaves out shards that are there."""
    text = (split / "nshards.txt").read_text().strip()
    if not text.isdecimal():
        raise InputError(f"{split}/nshards.txt is '{text[:20]}'; expected the number of shards")
    number = int(text)
    left_out = sorted(file.name for file in split.glob("*.tar") if file.stem.isdigit() and int(file.stem) >= number)
    if left_out:
        raise InputError(f"{split}/nshards.txt says {number}, which leaves out {left_out[0]}; expected all shards")
    return number
