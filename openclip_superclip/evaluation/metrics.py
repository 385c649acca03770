"""CLIP_benchmark's metrics of one model on one data set, from its features, called as by its
command line."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from clip_benchmark.metrics import linear_probe, zeroshot_classification, zeroshot_retrieval
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ..environment import replaced
from ..errors import InputError
from .features import SEED, EvaluationSettings, Features, finite

# CLIP_benchmark's metrics, and the number of outcomes of those that are the fraction of independent
# samples that are right, by name
Measured = tuple[dict[str, float], dict[str, int]]


@dataclass
class _Batches:
    """A data loader for CLIP_benchmark: features instead of images."""

    features: Features
    batch_size: int
    dataset: Dataset

    def __iter__(self) -> Iterator[tuple]:
        for start in range(0, len(self.features.targets), self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield self.features.images[rows], self.features.targets[rows]


def evaluate(
    model: nn.Module,
    tokenizer: Callable,
    dataset: Dataset,
    task: str,
    settings: EvaluationSettings,
    features: dict[str, Features],
) -> Measured:
    """Returns metrics by CLIP_benchmark's names, NaN if they are undefined, and numbers of
    outcomes.

    Of the test split `dataset`, only class names and templates are used; `features` are those of
    the split test and, for the linear probe, train. Raises InputError if a score would be
    meaningless.
    """
    test = features["test"]
    classes = getattr(dataset, "classes", None)
    if isinstance(test.targets, Tensor) and classes is not None:
        for split in features.values():
            _check_labels(split.targets, classes)

    def encode_text(tokens: Tensor) -> Tensor:
        return finite(model.encode_text(tokens), "texts")

    cached = SimpleNamespace(encode_image=nn.Identity(), encode_text=encode_text)
    batches = _Batches(test, settings.batch_size, dataset)
    options = {"device": settings.device, "amp": settings.precision == "amp"}
    torch.manual_seed(SEED)
    with contextlib.redirect_stdout(sys.stderr):  # CLIP_benchmark prints
        if task == "zeroshot_retrieval":
            return _retrieval(cached, tokenizer, batches, options)
        if task == "linear_probe":
            return linear_probe_metrics(features["train"], test, settings)
        check_prompts(classes, dataset.templates)
        metrics = zeroshot_classification.evaluate(
            cached, batches, tokenizer, classes, dataset.templates, **options
        )
    return metrics, {"acc1": len(test.targets)} if "acc1" in metrics else {}


def _retrieval(model: object, tokenizer: Callable, test: _Batches, options: dict) -> Measured:
    num_captions = [len(captions) for captions in test.features.targets]
    if 0 in num_captions:
        image = num_captions.index(0) + 1
        raise InputError(f"image {image} has no caption; expected one or more")
    num_images = len(num_captions)
    metrics = zeroshot_retrieval.evaluate(model, test, tokenizer, recall_k_list=[1], **options)
    num_outcomes = {"text_retrieval_recall@1": num_images}
    if sum(num_captions) == num_images:  # several captions of an image are not independent
        num_outcomes["image_retrieval_recall@1"] = num_images
    return metrics, num_outcomes


def linear_probe_metrics(train: Features, test: Features, settings: EvaluationSettings) -> Measured:
    """Returns the accuracy of CLIP_benchmark's linear probe: a linear layer on normalised features,
    fitted by AdamW.

    Its function for all of this asserts that it runs on a GPU, and shuffles the test samples.
    """
    device = settings.device
    amp = settings.precision == "amp"
    num_classes = int(train.targets.max()) + 1
    largest = int(test.targets.max())
    if largest >= num_classes:
        raise InputError(f"test contains the label {largest}, but train does not")
    with settings.autocast():
        inputs, test_inputs = (
            normalize(features.images.to(device), dim=-1).cpu() for features in (train, test)
        )
    order = torch.randperm(len(inputs))
    data = TensorDataset(inputs[order], train.targets[order])
    loader = DataLoader(data, settings.batch_size, shuffle=True)

    def to_device(moved: nn.Module | Tensor) -> nn.Module | Tensor:
        return moved.to(device)

    with (
        # it trains on the first GPU, or on all of them, and prints
        replaced(nn.Module, cuda=to_device),
        replaced(Tensor, cuda=to_device),
        replaced(nn, DataParallel=lambda model, device_ids: model),
        contextlib.redirect_stdout(None),
    ):
        probe = linear_probe.train(
            loader,
            input_shape=inputs.shape[1],
            output_shape=num_classes,
            weight_decay=0,
            lr=settings.probe_lr,
            epochs=settings.probe_epochs,
            amp=amp,
            device=device,
            seed=SEED,
        )
    in_order = DataLoader(TensorDataset(test_inputs, test.targets), settings.batch_size)
    logits, target = linear_probe.infer(probe, in_order, amp, device)
    (accuracy,) = zeroshot_classification.accuracy(logits.float(), target)
    return {"lp_acc1": accuracy}, {"lp_acc1": len(target)}


def check_prompts(classes: list[str], templates: list[str] | dict[str, list[str]]) -> None:
    """Raises InputError for an empty class name or unusable templates.

    Templates must contain {c}, the placeholder of the class name; a dict contains complete texts by
    class.
    """
    if not classes:
        raise InputError("classnames.txt is missing or empty; expected one on each line")
    if "" in classes:
        raise InputError(
            f"classnames.txt: line {classes.index('') + 1} is empty; expected a class name"
        )
    if not templates:
        raise InputError(
            "zeroshot_classification_templates.txt is missing or empty; expected a line such as: "
            "a photo of a {c}."
        )
    if isinstance(templates, dict):
        return
    for line, template in enumerate(templates, start=1):
        if "{c}" not in template or set("{}").intersection(template.replace("{c}", "")):
            raise InputError(
                f"zeroshot_classification_templates.txt: line {line} is '{template}'; expected "
                "{c} in place of the class name, and no other braces"
            )


def _check_labels(labels: Tensor, classes: list[str]) -> None:
    if labels.dim() == 2:  # one column per class
        if labels.shape[1] != len(classes):
            raise InputError(
                f"its labels have {labels.shape[1]} columns, but there are {len(classes)} "
                "class names"
            )
        return
    wrong = labels[(labels < 0) | (labels >= len(classes))]
    if len(wrong):
        raise InputError(
            f"it contains the label {wrong[0]}, but there are {len(classes)} class names, from 0 on"
        )
