"""Pictures with a label for every pixel, classes or depths, in the layouts of PASCAL VOC, ADE20k and a plain folder."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import VOCSegmentation

from ..errors import InputError

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
        with Image.open(self.pictures[place]) as picture:
            return self.transform(picture.convert("RGB")), place

    def label(self, place: int) -> Tensor:
        """Returns the classes of a picture's pixels, int64 [H, W], NO_CLASS where there is none, or their depths in
        metres, float32 [H, W], 0 where there is none. Raises InputError for what is neither."""
        with Image.open(self.labels[place]) as picture:
            values = np.array(picture)
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
