"""Segmentation and depth by a linear layer on the frozen patch tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, mse_loss
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize
from tqdm import tqdm

from ..errors import InputError
from .dense_datasets import NO_LABEL, DenseSet
from .features import SEED, EvaluationSettings, Features
from .intervals import IOU, RMSE, Measured, Outcome

BATCH_SIZE = 16
WEIGHT_DECAY = 1e-4
MOST_DEPTHS = 200  # training images for mean and standard deviation of the depths


def dense_probe(
    splits: dict[str, DenseSet], features: dict[str, Features], settings: EvaluationSettings
) -> Measured:
    """Returns the outcomes of `miou`, the mean IoU of the classes, or of `rmse`, the depths' root
    mean squared error in metres.

    Fits a batch norm and a linear layer on each patch token, resized to the image, by AdamW with a
    cosine schedule. The scores are over the pixels of all test images at their original sizes.
    `features` are the patch tokens of both splits, [N, D, h, w].
    """
    torch.manual_seed(SEED)
    train = splits["train"]
    tokens = features["train"].images
    width = tokens.shape[1]
    head = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, train.num_classes or 1, 1))
    head.to(settings.device)
    mean, deviation = (0.0, 1.0) if train.num_classes else _mean_and_deviation(train)

    def predict(patches: Tensor, size: torch.Size) -> Tensor:
        outputs = head(patches.to(settings.device)) * deviation + mean
        return interpolate(outputs, size, mode="bilinear")

    labelled = _Labelled(train, tokens, train.transform.transforms[0].size)
    loader = DataLoader(labelled, BATCH_SIZE, shuffle=True, num_workers=settings.workers)
    optimizer = torch.optim.AdamW(head.parameters(), settings.dense_lr, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, settings.dense_epochs * len(loader)
    )
    epochs = range(settings.dense_epochs)
    for _ in tqdm(epochs, desc="dense probe", unit=" epochs", leave=False, disable=None):
        for patches, labels in loader:
            outputs = predict(patches, labels.shape[1:])
            loss = _loss(outputs, labels.to(settings.device), train.num_classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    head.eval()
    return _measure(predict, splits["test"], features["test"].images, settings)


def _mean_and_deviation(train: DenseSet) -> tuple[Tensor, Tensor]:
    """Returns the mean and standard deviation of the depths in the first training images, by which
    outputs are scaled to metres."""
    depths = torch.cat(
        [train.label(index).flatten() for index in range(min(len(train), MOST_DEPTHS))]
    )
    depths = depths[depths != NO_LABEL]
    if len(depths) < 2:
        raise InputError(
            "its first training images have no depth; expected millimetres, 0 for none"
        )
    return depths.mean(), depths.std()


@dataclass
class _Labelled(Dataset):
    """The patch tokens of each image, and the labels of its pixels, resized to `size` if given."""

    images: DenseSet
    tokens: Tensor
    size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        label = self.images.label(index)
        if self.size:
            label = resize(label[None], self.size, InterpolationMode.NEAREST_EXACT)[0]
        # cloned: a view would be sent to the process as a whole
        return self.tokens[index].float().clone(), label


def _loss(outputs: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Returns the loss over all labelled pixels; 0 if there are none."""
    is_labelled = labels != NO_LABEL
    if not is_labelled.any():
        return outputs.sum() * 0
    if num_classes:
        return cross_entropy(outputs, labels, ignore_index=NO_LABEL)
    return mse_loss(outputs[:, 0][is_labelled], labels[is_labelled])


@torch.no_grad()
def _measure(
    predict: Callable, test: DenseSet, tokens: Tensor, settings: EvaluationSettings
) -> Measured:
    """Returns the outcome of each test image."""
    parts = []
    loader = DataLoader(_Labelled(test, tokens), None, num_workers=settings.workers)
    for patches, label in tqdm(
        loader, desc="dense test", unit=" images", leave=False, disable=None
    ):
        output = predict(patches[None], label.shape)[0].cpu()
        is_labelled = label != NO_LABEL
        predicted = output[:, is_labelled]
        true = label[is_labelled]
        if test.num_classes:
            parts.append(_overlaps(predicted.argmax(dim=0), true, test.num_classes))
        else:
            parts.append((((predicted[0] - true) ** 2).sum(), is_labelled.sum()))
    scored, of = (torch.stack(part).double().numpy() for part in zip(*parts, strict=True))
    if not of.any():
        raise InputError("no pixel of its test images has a label")
    name, kind = ("miou", IOU) if test.num_classes else ("rmse", RMSE)
    return {}, {name: Outcome(kind, scored, of)}


def _overlaps(predicted: Tensor, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Returns the pixels of each class in both and in either, [C] each."""
    both = torch.bincount(label[predicted == label], minlength=num_classes)
    sizes = [torch.bincount(pixels, minlength=num_classes) for pixels in (predicted, label)]
    return both, sum(sizes) - both
