"""What would make a score mean nothing, found while CLIP_benchmark computes it."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError


def check_prompts(classes: list[str], templates: list[str] | dict[str, list[str]]) -> None:
    """Raises InputError for an empty class name, and where there is no template or one without {c}.

    CLIP_benchmark puts the class name there; a dict holds whole texts by class.
    """
    for line, name in enumerate(classes, start=1):
        if not name:
            raise InputError(f"classnames.txt: line {line} is empty; expected a class name")
    if not templates:
        raise InputError("zeroshot_classification_templates.txt is empty; expected a line such as: a photo of a {c}.")
    for line, template in enumerate(templates if isinstance(templates, list) else [], start=1):
        if not _holds_class_name(template):
            raise InputError(
                f"zeroshot_classification_templates.txt: line {line} is '{template}'; expected {{c}} where the class "
                "name goes, and no other braces"
            )


def _holds_class_name(template: str) -> bool:
    try:
        return "\0" in template.format(c="\0")
    except (LookupError, ValueError):
        return False


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


class CheckedLoader:
    """A data loader that raises InputError where a label has no class name."""

    def __init__(self, loader, classes: list[str] | None):
        self.loader, self.classes = loader, classes
        self.dataset = loader.dataset  # CLIP_benchmark asks it for the classes

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator:
        for batch in self.loader:
            if isinstance(batch[1], Tensor):  # else captions
                self._check_labels(batch[1])
            yield batch

    def _check_labels(self, labels: Tensor) -> None:
        num_classes = len(self.classes) if self.classes is not None else None
        if labels.dim() == 2:  # one column a class
            if num_classes is not None and labels.shape[1] != num_classes:
                raise InputError(f"its labels have {labels.shape[1]} columns, but there are {num_classes} class names")
            return
        smallest, largest = int(labels.min()), int(labels.max())
        if smallest < 0:
            raise InputError(f"it holds the label {smallest}; expected 0 or more")
        if num_classes is not None and largest >= num_classes:
            raise InputError(f"it holds the label {largest}, but there are {num_classes} class names, from 0 on")


class FiniteFeatures(nn.Module):
    """A model for evaluation that raises InputError where its features are NaN or infinite: they rank nothing."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def encode_image(self, images: Tensor) -> Tensor:
        return _finite(self.model.encode_image(images), "pictures")

    def encode_text(self, tokens: Tensor) -> Tensor:
        return _finite(self.model.encode_text(tokens), "texts")


def _finite(features: Tensor, what: str) -> Tensor:
    if not torch.isfinite(features).all():
        raise InputError(f"the model's features of {what} are not finite numbers (NaN or infinite)")
    return features


def check_fitted(fitted: list[Tensor], test: Tensor) -> None:
    """Raises InputError where the test split holds a label above all that something is fitted to."""
    if (label := int(test.max())) > max(int(labels.max()) for labels in fitted):
        raise InputError(f"test holds the label {label}, which what it is fitted to lacks")
