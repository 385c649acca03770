"""Segmentation and depth by a linear layer on the patch tokens, with a frozen or fine-tuned tower."""

import copy
from collections.abc import Iterator

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
from .tasks import SEED, Settings

BATCH_SIZE = 16
TOWER_LR = 1e-5
WEIGHT_DECAY = 1e-4
MOST_DEPTHS = 200  # training images for mean and standard deviation of the depths


class PatchMaps(nn.Module):
    """A model that returns its patch tokens as a feature map, [B, W, h, w], instead of image features."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.visual, self.tokens = network.visual, patch_tokens(network.visual)

    def encode_image(self, images: Tensor) -> Tensor:
        return patch_map(self.visual, self.tokens, images)


def whole_image(network: nn.Module) -> Compose:
    """Returns the transform that resizes whole images to the model's input, so that pixels keep their labels."""
    size, preprocess = network.visual.image_size, network.visual.preprocess_cfg
    size = (size, size) if isinstance(size, int) else tuple(size)
    resize = Resize(size, InterpolationMode.BICUBIC, antialias=True)
    return Compose([resize, ToTensor(), Normalize(preprocess["mean"], preprocess["std"])])


def dense_probe(
    network: nn.Module, train: DenseSet, test: DenseSet, by_split: dict[str, Features], settings: Settings
) -> tuple[dict[str, float], dict[str, Outcome]]:
    """Returns the mean IoU of the classes as `miou`, or the depths' root mean squared error in metres as `rmse`.

    Fits a batch norm and a linear layer on each patch token, resized to the image, by AdamW with a cosine schedule. The
    scores are over the pixels of all test images at their original sizes.

    Args:
        by_split: the patch tokens of the splits, [N, W, h, w], for a frozen tower; {} to fine-tune it.
    """
    torch.manual_seed(SEED)
    maps = None if by_split else PatchMaps(copy.deepcopy(network)).float()
    width = patch_tokens(network.visual).width
    head = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, train.num_classes or 1, 1))
    if not train.num_classes:
        head.append(_Metres(train))
    head.to(settings.device)
    _fit(head, maps, train, by_split.get("train"), settings)
    return _measure(head.eval(), maps, test, by_split.get("test"), settings)


class _Metres(nn.Module):
    """Scales standardised outputs to depths, by mean and standard deviation over the first training images."""

    def __init__(self, train: DenseSet):
        super().__init__()
        depths = torch.cat([train.label(index).flatten() for index in range(min(len(train), MOST_DEPTHS))])
        depths = depths[depths > 0]
        if len(depths) < 2:
            raise InputError("its first training images have no depth; expected millimetres, 0 for none")
        self.register_buffer("mean", depths.mean())
        self.register_buffer("deviation", depths.std())

    def forward(self, numbers: Tensor) -> Tensor:
        return numbers * self.deviation + self.mean


class _Inputs(Dataset):
    """The input of the linear layer or the tower for each image, and its labels, at `size` if given."""

    def __init__(self, images: DenseSet, features: Features | None, size: tuple[int, int] | None):
        self.images, self.features, self.size = images, features, size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        # Cloned: a tensor that is mapped from a file cannot be sent to another process.
        given = self.images[index][0] if self.features is None else self.features.images[index].float().clone()
        label = self.images.label(index)
        if self.size:
            resized = interpolate(label[None, None].double(), self.size, mode="nearest-exact")
            label = resized[0, 0].to(label.dtype)
        return given, label


def _fit(head: nn.Module, maps: PatchMaps | None, train: DenseSet, features: Features | None, settings) -> None:
    size = train.transform.transforms[0].size
    loader = DataLoader(_Inputs(train, features, size), BATCH_SIZE, shuffle=True, num_workers=settings.workers)
    groups = [{"params": head.parameters(), "lr": settings.dense_lr}]
    if maps is not None:
        groups.append({"params": [p for p in maps.visual.parameters() if p.requires_grad], "lr": TOWER_LR})
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.dense_epochs * len(loader))
    for _ in tqdm(range(settings.dense_epochs), desc="dense probe", unit=" epochs", leave=False, disable=None):
        for given, labels in loader:
            given, labels = given.to(settings.device), labels.to(settings.device)
            patches = given if maps is None else maps.encode_image(given)
            loss = _loss(interpolate(head(patches), labels.shape[1:], mode="bilinear"), labels, train.num_classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _has_label(labels: Tensor, num_classes: int) -> Tensor:
    return labels != NO_CLASS if num_classes else labels > 0


def _loss(outputs: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Returns the loss over all labelled pixels; 0 if there are none."""
    known = _has_label(labels, num_classes)
    if not known.any():
        return outputs.sum() * 0
    if num_classes:
        return cross_entropy(outputs, labels, ignore_index=NO_CLASS)
    return mse_loss(outputs[:, 0][known], labels[known])


@torch.no_grad()
def _measure(head, maps, test: DenseSet, features: Features | None, settings) -> tuple[dict, dict[str, Outcome]]:
    parts, num_known = [], 0
    for output, label in _outputs(head, maps, test, features, settings):
        known = _has_label(label, test.num_classes)
        num_known += int(known.sum())
        if test.num_classes:
            parts.append(_overlaps(output.argmax(dim=0)[known], label[known], test.num_classes))
        else:
            parts.append((float(((output[0] - label)[known] ** 2).sum()), int(known.sum())))
    if not num_known:
        raise InputError(f"its test images have no {'class' if test.num_classes else 'depth'}: no pixel has a label")
    scored, of = (np.array(part, dtype=np.float64) for part in zip(*parts, strict=True))
    name, kind = ("miou", IOU) if test.num_classes else ("rmse", RMSE)
    outcome = Outcome(kind, scored, of)
    return {name: estimate(outcome, "").value}, {name: outcome}


def _outputs(head, maps, test: DenseSet, features: Features | None, settings) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the outputs [C, H, W] and the labels [H, W] of every test image, at its original size."""
    loader = DataLoader(_Inputs(test, features, None), None, num_workers=settings.workers)
    for given, label in tqdm(loader, desc="dense test", unit=" images", leave=False, disable=None):
        given = given[None].to(settings.device)
        patches = given if maps is None else maps.encode_image(given)
        yield interpolate(head(patches), label.shape, mode="bilinear")[0].cpu(), label


def _overlaps(found: Tensor, label: Tensor, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels of each class in both and in either, [C] each."""
    both = torch.bincount(label[found == label], minlength=num_classes)
    either = torch.bincount(found, minlength=num_classes) + torch.bincount(label, minlength=num_classes) - both
    return both.numpy(), either.numpy()
