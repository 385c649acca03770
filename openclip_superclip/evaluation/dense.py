"""Segmentation and depth by one linear map of the patch tokens: frozen or, with the tower, tuned."""

import copy
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, mse_loss
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize, ToTensor
from tqdm import tqdm

from ..errors import InputError
from ..method.patch_tokens import patch_map, patch_tokens
from .datasets import NO_CLASS, DenseSet
from .features import Features
from .outcomes import IOU, RMSE, Outcome, estimate

TOWER_LR = 1e-5
WEIGHT_DECAY = 1e-4


MOST_DEPTHS = 200  # pictures whose depths are asked for mean and deviation


class DenseSettings(NamedTuple):
    """How the map is fitted: AdamW, cosine."""

    lr: float
    epochs: int
    batch_size: int
    workers: int
    device: str
    seed: int


class PatchMaps(nn.Module):
    """A model that gives its patch tokens where they lie, [B, W, h, w], instead of image features."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.visual, self.tokens = network.visual, patch_tokens(network.visual)

    def encode_image(self, images: Tensor) -> Tensor:
        return patch_map(self.visual, self.tokens, images)


def whole_picture(network: nn.Module) -> Compose:
    """Returns the transform that squeezes whole pictures into the model's input, so that pixels keep their labels."""
    size, about = network.visual.image_size, network.visual.preprocess_cfg
    size = (size, size) if isinstance(size, int) else tuple(size)
    resize = Resize(size, InterpolationMode.BICUBIC, antialias=True)
    return Compose([resize, ToTensor(), Normalize(about["mean"], about["std"])])


def dense_probe(
    network: nn.Module, train: DenseSet, test: DenseSet, by_split: dict[str, Features], settings: DenseSettings
) -> tuple[dict[str, float], dict[str, Outcome]]:
    """Returns the mean IoU of the classes as `miou`, or the depths' root mean squared error in metres as `rmse`.

    A batch norm and one linear map of each patch token, enlarged to the picture. Without features the tower is tuned
    with it. The numbers are over the pixels of all test pictures at their own sizes.

    Args:
        by_split: the patch tokens of the splits, [N, W, h, w], for a frozen tower.
    """
    torch.manual_seed(settings.seed)
    maps = None if by_split else PatchMaps(copy.deepcopy(network)).float()
    width = patch_tokens(network.visual).width
    head = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, train.num_classes or 1, 1))
    if not train.num_classes:
        head.append(_Metres(train))
    head.to(settings.device)
    _fit(head, maps, train, by_split.get("train"), settings)
    return _measure(head.eval(), maps, test, by_split.get("test"), settings)


class _Metres(nn.Module):
    """From numbers about 0 to depths: by mean and deviation of the training pictures', some of them."""

    def __init__(self, train: DenseSet):
        super().__init__()
        depths = torch.cat([train.label(place).flatten() for place in range(min(len(train), MOST_DEPTHS))])
        depths = depths[depths > 0]
        if len(depths) < 2:
            raise InputError("its first training pictures show no depth; expected millimetres, 0 where there is none")
        self.register_buffer("mean", depths.mean())
        self.register_buffer("deviation", depths.std())

    def forward(self, numbers: Tensor) -> Tensor:
        return numbers * self.deviation + self.mean


class _Inputs(Dataset):
    """What the map, or the tower, is given for each picture, and the labels."""

    def __init__(self, pictures: DenseSet, features: Features | None, size: tuple[int, int] | None):
        self.pictures, self.features, self.size = pictures, features, size

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        # Copied: what is mapped from a file cannot be handed on to another process.
        given = self.pictures[place][0] if self.features is None else self.features.images[place].float().clone()
        label = self.pictures.label(place)
        if self.size:  # of a batch
            label = _at_size(label, self.size)
        return given, label


def _fit(head: nn.Module, maps: PatchMaps | None, train: DenseSet, features: Features | None, settings) -> None:
    size = train.transform.transforms[0].size
    loader = DataLoader(_Inputs(train, features, size), settings.batch_size, shuffle=True, num_workers=settings.workers)
    groups = [{"params": head.parameters(), "lr": settings.lr}]
    if maps is not None:
        groups.append({"params": [p for p in maps.visual.parameters() if p.requires_grad], "lr": TOWER_LR})
    optimiser = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs * len(loader))
    with tqdm(
        total=settings.epochs * len(loader), desc="dense probe", unit=" steps", leave=False, disable=None
    ) as progress:
        for _ in range(settings.epochs):
            for given, labels in loader:
                given, labels = given.to(settings.device), labels.to(settings.device)
                patches = given if maps is None else maps.encode_image(given)
                loss = _loss(interpolate(head(patches), labels.shape[1:], mode="bilinear"), labels, train.num_classes)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                progress.update()


def _loss(outputs: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Returns the loss over all pixels that have a label; 0 where none has."""
    if num_classes:
        known = labels != NO_CLASS
        return cross_entropy(outputs, labels, ignore_index=NO_CLASS) if known.any() else outputs.sum() * 0
    known = labels > 0
    return mse_loss(outputs[:, 0][known], labels[known]) if known.any() else outputs.sum() * 0


@torch.no_grad()
def _measure(head, maps, test: DenseSet, features: Features | None, settings) -> tuple[dict, dict[str, Outcome]]:
    name = "miou" if test.num_classes else "rmse"
    parts, num_known = [], 0
    for output, label in _outputs(head, maps, test, features, settings):
        known = label != NO_CLASS if test.num_classes else label > 0
        num_known += int(known.sum())
        if test.num_classes:
            parts.append(_overlaps(output.argmax(dim=0), label, test.num_classes))
        else:
            parts.append((float(((output[0] - label)[known] ** 2).sum()), int(known.sum())))
    if not num_known:
        shown = "class: all pixels are no class" if test.num_classes else "depth: all pixels are 0"
        raise InputError(f"its test pictures show no {shown}")
    scored, of = (np.array(part, dtype=np.float64) for part in zip(*parts, strict=True))
    outcome = Outcome(IOU if test.num_classes else RMSE, scored, of)
    return {name: estimate(outcome, "").value}, {name: outcome}


def _outputs(head, maps, test: DenseSet, features: Features | None, settings) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the map's outputs [C, H, W] and the labels [H, W] of every test picture, at its own size."""
    loader = DataLoader(_Inputs(test, features, None), None, num_workers=settings.workers)
    for given, label in tqdm(loader, desc="dense test", unit=" pictures", leave=False, disable=None):
        given = given[None].to(settings.device)
        patches = given if maps is None else maps.encode_image(given)
        yield interpolate(head(patches), label.shape, mode="bilinear")[0].cpu(), label


def _overlaps(found: Tensor, label: Tensor, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels of each class in both and in either, [C] each."""
    known = label != NO_CLASS
    found, label = found[known], label[known]
    both = torch.bincount(label[found == label], minlength=num_classes)
    either = torch.bincount(found, minlength=num_classes) + torch.bincount(label, minlength=num_classes) - both
    return both.numpy(), either.numpy()


def _at_size(label: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns labels [H, W] at another size: those of the nearest pixels."""
    return interpolate(label[None, None].double(), size, mode="nearest-exact")[0, 0].to(label.dtype)
