"""Metrics of one model on one data set from its features, with the outcome of every test sample.

They are CLIP_benchmark's, called as by its command line.
"""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from clip_benchmark.metrics import linear_probe, zeroshot_classification, zeroshot_retrieval
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ..environment import replaced
from ..errors import InputError
from .features import RECALL_K, SEED, EvaluationSettings, Features, finite
from .intervals import MEAN, PRECISION, RECALL, Measured, Outcome, right


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
    """Returns metrics by CLIP_benchmark's names, NaN if they are undefined, and outcomes.

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
        with _recorded(zeroshot_classification, "run_classification") as results:
            metrics = zeroshot_classification.evaluate(
                cached, batches, tokenizer, classes, dataset.templates, **options
            )
    logits, target = results[0]
    return metrics, _of_logits(logits, target, num_classes=logits.shape[1])


@contextlib.contextmanager
def _recorded(module: object, name: str) -> Iterator[list]:
    """Yields the list of what a function returns, call by call."""
    results = []
    function = getattr(module, name)

    def recording(*args, **options):
        results.append(function(*args, **options))
        return results[-1]

    with replaced(module, **{name: recording}):
        yield results


def _retrieval(model: object, tokenizer: Callable, test: _Batches, options: dict) -> Measured:
    """Outcomes are, for each image, how many of its captions find it, and whether it finds one
    of them."""
    num_captions = np.array([len(texts) for texts in test.features.targets], np.int32)
    if not num_captions.all():
        image = np.argmin(num_captions) + 1
        raise InputError(f"image {image} has no caption; expected one or more")
    ks = [k for k in RECALL_K if k <= len(num_captions)]  # topk fails with fewer images
    with _recorded(zeroshot_retrieval, "batchify") as results:
        metrics = zeroshot_retrieval.evaluate(model, test, tokenizer, recall_k_list=ks, **options)
    image_of_caption = np.repeat(np.arange(len(num_captions)), num_captions)
    recalls = [(recall > 0).numpy() for recall in results]  # of each k by text, then by image
    outcomes = {}
    for k, by_text, by_image in zip(ks, recalls[::2], recalls[1::2], strict=True):
        hits = np.bincount(image_of_caption, by_text, minlength=len(num_captions))
        outcomes[f"image_retrieval_recall@{k}"] = Outcome(MEAN, hits.astype(np.int32), num_captions)
        outcomes[f"text_retrieval_recall@{k}"] = right(by_image)
    return metrics, outcomes


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
    logits = logits.float()
    has_top_5 = largest >= 5
    accuracies = zeroshot_classification.accuracy(logits, target, (1, 5) if has_top_5 else (1,))
    metrics = {"lp_acc1": accuracies[0], "lp_acc5": accuracies[1] if has_top_5 else math.nan}
    return metrics, _of_logits(logits, target, num_classes=largest, prefix="lp_")


def _of_logits(
    logits: Tensor, target: Tensor, num_classes: int, prefix: str = ""
) -> dict[str, Outcome]:
    if target.dim() == 2:  # one column per class
        # CLIP_benchmark's
        order = torch.stack([column.sort(descending=True)[1] for column in logits.unbind(1)], dim=1)
        ranks = order.argsort(dim=0).int().numpy()
        labels = target.numpy().astype(np.uint8)
        return {"mean_average_precision": Outcome(PRECISION, -ranks, labels)}
    # Equal logits: CLIP_benchmark takes the first of topk for the accuracy, and argmax for the mean
    # recall.
    k = 5 if num_classes >= 5 else 1  # CLIP_benchmark computes top-5 accuracy
    first = logits.topk(k, dim=1)[1][:, 0]
    hits = (logits.argmax(dim=1) == target).numpy().astype(np.uint8)
    return {
        f"{prefix}acc1": right((first == target).numpy()),
        f"{prefix}mean_per_class_recall": Outcome(RECALL, hits, target.numpy().astype(np.int32)),
    }


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
