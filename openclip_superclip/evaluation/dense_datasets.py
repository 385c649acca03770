"""Data sets with a class or a depth for each pixel: PASCAL VOC, ADE20k, NYUv2 and their layouts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import VOCSegmentation

from ..data.images import open_image
from ..errors import InputError

SEGMENTATION = "segmentation"
DEPTH = "depth"
DENSE = (SEGMENTATION, DEPTH)
NO_LABEL = 255  # of a pixel without a class or a depth: 16 bits hold at most 65.5 metres
VOC_CLASSES = 21
ADE_CLASSES = 150
VOC_SPLITS = {"train": "train", "test": "val"}
ADE_SPLITS = {"train": "training", "test": "validation"}


def dense_kind(folder: Path) -> str | None:
    """Returns the kind of a data set with pixel labels; None for other folders."""
    if _is_voc(folder) or (folder / "annotations" / "training").is_dir():
        return SEGMENTATION
    return DEPTH if (folder / "train" / "depths").is_dir() else None


def _is_voc(folder: Path) -> bool:
    return (folder / "VOCdevkit" / "VOC2012").is_dir()


class DenseSet(Dataset):
    """The images of a split (train or test), transformed, with their indices; `label` reads
    their pixels' labels."""

    def __init__(self, folder: Path, split: str, transform: Callable):
        self.transform = transform
        self.num_classes = 0
        self.first_class = 0
        if _is_voc(folder):
            voc = VOCSegmentation(folder, year="2012", image_set=VOC_SPLITS[split])
            self.images = voc.images
            self.labels = voc.masks
            self.num_classes = VOC_CLASSES
        elif dense_kind(folder) == SEGMENTATION:
            part = ADE_SPLITS[split]
            self._find_images(folder / "images" / part, folder / "annotations" / part)
            names = folder / "classes.txt"
            self.num_classes = ADE_CLASSES
            if names.is_file():
                self.num_classes = len(names.read_text().splitlines())
            if self.num_classes >= NO_LABEL:
                raise InputError(
                    f"{names} has {self.num_classes} lines; expected fewer than {NO_LABEL} classes"
                )
            self.first_class = 1  # 0 is no class
        else:
            self._find_images(folder / split / "images", folder / split / "depths")

    def _find_images(self, images: Path, labels: Path) -> None:
        """Sets the images and their labels of equal names; InputError for an image without one."""
        suffixes = (".jpg", ".jpeg", ".png")
        self.images = sorted(path for path in images.glob("*") if path.suffix.lower() in suffixes)
        if not self.images:
            raise InputError(
                f"{images} contains no image; expected .jpg or .png, and its label in {labels}"
            )
        self.labels = [labels / f"{path.stem}.png" for path in self.images]
        for label in self.labels:
            if not label.is_file():
                raise InputError(
                    f"there is no {label}; expected a label for every image of {images}"
                )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with open_image(self.images[index]) as image:
            return self.transform(image.convert("RGB")), index

    def label(self, index: int) -> Tensor:
        """Returns the labels of an image's pixels; InputError if they do not match the image.

        These are classes, int64 [H, W], or depths in metres, float32 [H, W]; NO_LABEL for none.
        """
        file = self.labels[index]
        with open_image(self.images[index]) as image, open_image(file) as labels:
            shape = image.size[::-1]
            values = np.array(labels)
        if values.shape != shape:
            raise InputError(
                f"{file} has the shape {list(values.shape)}; expected its image's, {list(shape)}"
            )
        if not self.num_classes:
            depths = values.astype(np.float32) / 1000  # of millimetres
            depths[values == 0] = NO_LABEL
            return torch.from_numpy(depths)
        classes = values.astype(np.int64) - self.first_class
        is_none = (classes < 0) | (values == NO_LABEL)
        largest = classes[~is_none].max(initial=0)
        if largest >= self.num_classes:
            raise InputError(
                f"{file} contains the class {largest + self.first_class}; expected "
                f"{self.num_classes} classes"
            )
        return torch.from_numpy(np.where(is_none, NO_LABEL, classes))
