"""Segmentation and depth by a linear layer on the frozen patch tokens."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, mse_loss
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize, ToTensor
from tqdm import tqdm

from ...errors import InputError
from .datasets import NO_CLASS, SEED, DenseSet, Settings
from .intervals import IOU, RMSE, Outcome, estimate

BATCH_SIZE = 16
WEIGHT_DECAY = 1e-4
MOST_DEPTHS = 200  # training images for mean and standard deviation of the depths


def whole_image(network: nn.Module) -> Compose:
    """Returns the transform that resizes whole images to the model's input, so that pixels keep
    their labels."""
    size, preprocess = network.visual.image_size, network.visual.preprocess_cfg
    size = (size, size) if isinstance(size, int) else tuple(size)
    resize = Resize(size, InterpolationMode.BICUBIC, antialias=True)
    return Compose([resize, ToTensor(), Normalize(preprocess["mean"], preprocess["std"])])


def dense_probe(
    splits: dict[str, DenseSet], tokens: dict[str, Tensor], settings: Settings
) -> tuple[dict[str, float], dict[str, Outcome]]:
    """Returns the mean IoU of the classes as `miou`, or the depths' root mean squared error in
    metres as `rmse`.

    Fits a batch norm and a linear layer on each patch token, resized to the image, by AdamW with a
    cosine schedule. The scores are over the pixels of all test images at their original sizes.
    `tokens` are the patch tokens of both splits, [N, D, h, w].
    """
    torch.manual_seed(SEED)
    train, test = splits["train"], splits["test"]
    width = tokens["train"].shape[1]
    head = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, train.num_classes or 1, 1))
    if not train.num_classes:
        head.append(_Metres(train))
    head.to(settings.device)
    labelled = _Labelled(train, tokens["train"], train.transform.transforms[0].size)
    loader = DataLoader(labelled, BATCH_SIZE, shuffle=True, num_workers=settings.workers)
    optimizer = torch.optim.AdamW(head.parameters(), settings.dense_lr, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, settings.dense_epochs * len(loader)
    )
    for _ in tqdm(
        range(settings.dense_epochs), desc="dense probe", unit=" epochs", leave=False, disable=None
    ):
        for patches, labels in loader:
            labels = labels.to(settings.device)
            outputs = interpolate(
                head(patches.to(settings.device)), labels.shape[1:], mode="bilinear"
            )
            loss = _loss(outputs, labels, train.num_classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return _measure(head.eval(), test, tokens["test"], settings)


class _Metres(nn.Module):
    """Scales standardised outputs to depths, by mean and standard deviation over the first
    training images."""

    def __init__(self, train: DenseSet):
        super().__init__()
        depths = torch.cat(
            [train.label(index).flatten() for index in range(min(len(train), MOST_DEPTHS))]
        )
        depths = depths[depths > 0]
        if len(depths) < 2:
            raise InputError(
                "its first training images have no depth; expected millimetres, 0 for none"
            )
        self.register_buffer("mean", depths.mean())
        self.register_buffer("deviation", depths.std())

    def forward(self, numbers: Tensor) -> Tensor:
        return numbers * self.deviation + self.mean


class _Labelled(Dataset):
    """The patch tokens of each image, and the labels of its pixels, resized to `size` if given."""

    def __init__(self, images: DenseSet, tokens: Tensor, size: tuple[int, int] | None):
        self.images, self.tokens, self.size = images, tokens, size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        label = self.images.label(index)
        if self.size:
            resized = interpolate(label[None, None].double(), self.size, mode="nearest-exact")
            label = resized[0, 0].to(label.dtype)
        # cloned: a view would be sent to the process as a whole
        return self.tokens[index].float().clone(), label


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
def _measure(
    head: nn.Module, test: DenseSet, tokens: Tensor, settings
) -> tuple[dict, dict[str, Outcome]]:
    parts, num_known = [], 0
    loader = DataLoader(_Labelled(test, tokens, None), None, num_workers=settings.workers)
    for patches, label in tqdm(
        loader, desc="dense test", unit=" images", leave=False, disable=None
    ):
        output = interpolate(head(patches[None].to(settings.device)), label.shape, mode="bilinear")[
            0
        ].cpu()
        known = _has_label(label, test.num_classes)
        num_known += int(known.sum())
        if test.num_classes:
            parts.append(_overlaps(output.argmax(dim=0)[known], label[known], test.num_classes))
        else:
            parts.append((float(((output[0] - label)[known] ** 2).sum()), int(known.sum())))
    if not num_known:
        raise InputError(
            f"its test images have no {'class' if test.num_classes else 'depth'}: no pixel has "
            "a label"
        )
    scored, of = (np.array(part, dtype=np.float64) for part in zip(*parts, strict=True))
    name, kind = ("miou", IOU) if test.num_classes else ("rmse", RMSE)
    outcome = Outcome(kind, scored, of)
    return {name: estimate(outcome).value}, {name: outcome}


def _overlaps(found: Tensor, label: Tensor, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels of each class in both and in either, [C] each."""
    both = torch.bincount(label[found == label], minlength=num_classes)
    either = (
        torch.bincount(found, minlength=num_classes)
        + torch.bincount(label, minlength=num_classes)
        - both
    )
    return both.numpy(), either.numpy()
