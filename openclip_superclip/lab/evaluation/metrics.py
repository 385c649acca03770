"""Metrics of one model on one data set from its features, with the outcome of every test sample.

They are CLIP_benchmark's, called as by its command line.
"""

import contextlib
import itertools
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import torch
from clip_benchmark.metrics import linear_probe, zeroshot_classification, zeroshot_retrieval
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import DataLoader, TensorDataset

from ...environment import replaced
from ...errors import InputError
from .datasets import RECALL_K, SEED, Features, Settings, finite
from .intervals import MEAN, PRECISION, RECALL, Outcome, estimate, right

Metrics = dict[str, float | None]
Outcomes = dict[str, Outcome]


class _Batches:
    """A data loader for CLIP_benchmark: features instead of images."""

    def __init__(self, features: Features, batch_size: int, dataset: object):
        self.features, self.batch_size, self.dataset = features, batch_size, dataset

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | list[list[str]]]]:
        for start in range(0, len(self.features.targets), self.batch_size):
            some = slice(start, start + self.batch_size)
            yield self.features.images[some], self.features.targets[some]


def evaluate(
    model: nn.Module,
    tokenizer: Callable,
    dataset: object,
    task: str,
    settings: Settings,
    by_split: dict[str, Features],
) -> tuple[Metrics, Outcomes]:
    """Returns metrics by CLIP_benchmark's names, and outcomes; undefined metrics are None.

    Of the test split `dataset`, only class names and templates are used; `by_split` are the
    features of the split test and, for the linear probe, train. Raises InputError if a score would
    be meaningless.
    """
    test, classes = by_split["test"], getattr(dataset, "classes", None)
    if isinstance(test.targets, Tensor) and classes is not None:
        for features in by_split.values():
            _check_labels(features.targets, classes)
    options = {"device": settings.device, "amp": settings.precision == "amp"}
    cached = SimpleNamespace(
        encode_image=lambda features: features,
        encode_text=lambda tokens: finite(model.encode_text(tokens), "texts"),
    )
    batches = _Batches(test, settings.batch_size, dataset)
    torch.manual_seed(SEED)
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():  # CLIP_benchmark prints
        # on classes without samples in a small data set
        warnings.filterwarnings("ignore", module="sklearn")
        if task == "zeroshot_retrieval":
            metrics, outcomes = _retrieval(cached, tokenizer, batches, options)
        elif task == "linear_probe":
            metrics, outcomes = fit_probe(by_split["train"], test, settings)
        else:
            check_prompts(classes, dataset.templates)
            names = tokenizer, classes, dataset.templates
            with _recorded(zeroshot_classification, "run_classification") as calls:
                metrics = zeroshot_classification.evaluate(cached, batches, *names, **options)
            logits, target = calls[-1][1]
            outcomes = _of_logits(logits, target, "", logits.shape[1])
    values = {name: estimate(outcome).value for name, outcome in outcomes.items()}
    # CLIP_benchmark's value, up to rounding in a different batch order.
    metrics |= {
        k: v
        for k, v in values.items()
        if not math.isclose(v, metrics.get(k, math.nan), abs_tol=1e-6)
    }
    return {
        k: None if isinstance(v, float) and math.isnan(v) else v for k, v in metrics.items()
    }, outcomes


@contextlib.contextmanager
def _recorded(owner: object, name: str) -> Iterator[list[tuple[tuple, object]]]:
    """Yields the list of a function's calls, (arguments, result) each."""
    calls, function = [], getattr(owner, name)

    def recording(*args, **options):
        calls.append((args, function(*args, **options)))
        return calls[-1][1]

    with replaced(owner, **{name: recording}):
        yield calls


def _retrieval(model, tokenizer, test: _Batches, options: dict) -> tuple[Metrics, Outcomes]:
    """Outcomes are, for each image, how many of its captions find it, and whether it finds one
    of them."""
    captions = np.array([len(texts) for texts in test.features.targets])
    ks = [k for k in RECALL_K if k <= len(captions)]  # topk fails with fewer images
    with _recorded(zeroshot_retrieval, "batchify") as calls:
        metrics = zeroshot_retrieval.evaluate(model, test, tokenizer, recall_k_list=ks, **options)
    image_of_caption, outcomes = np.repeat(np.arange(len(captions)), captions), {}
    for k, (_, by_text), (_, by_image) in zip(ks, calls[::2], calls[1::2], strict=True):
        hits = np.bincount(image_of_caption, (by_text > 0).numpy(), minlength=len(captions))
        outcomes[f"image_retrieval_recall@{k}"] = Outcome(
            MEAN, hits.astype(np.int32), captions.astype(np.int32)
        )
        outcomes[f"text_retrieval_recall@{k}"] = right((by_image > 0).numpy())
    return metrics, outcomes


def fit_probe(train: Features, test: Features, settings: Settings) -> tuple[Metrics, Outcomes]:
    """Returns the accuracy of CLIP_benchmark's linear probe: a linear layer on normalised features,
    fitted by AdamW.

    Equal to CLIP_benchmark's function to the last digit, which asserts that it runs on a GPU.
    """
    if (label := int(test.targets.max())) > int(train.targets.max()):
        raise InputError(f"test contains the label {label}, but train does not")
    with settings.autocast():
        x, y = (
            normalize(features.images.to(settings.device), dim=-1).cpu()
            for features in (train, test)
        )
    order = torch.randperm(len(x))
    data = TensorDataset(x[order], train.targets[order])
    loader = DataLoader(data, settings.batch_size, shuffle=True, num_workers=settings.workers)
    torch.manual_seed(SEED)
    probe = nn.Linear(x.shape[1], int(train.targets.max()) + 1).to(settings.device)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=settings.probe_lr, weight_decay=0)
    set_lr = linear_probe.cosine_lr(
        optimizer, settings.probe_lr, 0, settings.probe_epochs * len(loader)
    )
    for step, (images, labels) in enumerate(
        itertools.chain(*itertools.repeat(loader, settings.probe_epochs))
    ):
        set_lr(step)
        optimizer.zero_grad()
        with settings.autocast():
            loss = cross_entropy(probe(images.to(settings.device)), labels.to(settings.device))
        loss.backward()
        optimizer.step()
    in_order = DataLoader(TensorDataset(y, test.targets), settings.batch_size)
    logits, target = linear_probe.infer(
        probe, in_order, settings.precision == "amp", settings.device
    )
    top = (1, 5) if target.max() >= 5 else (1,)
    acc1, acc5 = [*zeroshot_classification.accuracy(logits.float(), target, top), math.nan][:2]
    metrics = {"lp_acc1": acc1, "lp_acc5": acc5, "epochs": settings.probe_epochs}
    return metrics, _of_logits(logits.float(), target, "lp_", num_classes=int(target.max()))


def _of_logits(logits: Tensor, target: Tensor, prefix: str, num_classes: int) -> Outcomes:
    if target.dim() == 2:  # one column per class
        # CLIP_benchmark's
        order = torch.stack([column.sort(descending=True)[1] for column in logits.unbind(1)], dim=1)
        ranks = order.argsort(dim=0).int().numpy()
        return {
            "mean_average_precision": Outcome(PRECISION, -ranks, target.numpy().astype(np.uint8))
        }
    labels = target.numpy().astype(np.int32)
    # Equal logits: CLIP_benchmark takes the first of topk for the accuracy, and argmax for the mean
    # recall.
    k = 5 if num_classes >= 5 else 1  # CLIP_benchmark computes top-5 accuracy
    first = logits.topk(k, 1, True, True)[1][:, 0]
    hits = (logits.argmax(dim=1) == target).numpy().astype(np.uint8)
    return {
        f"{prefix}acc1": right((first == target).numpy()),
        f"{prefix}mean_per_class_recall": Outcome(RECALL, hits, labels),
    }


def check_prompts(classes: list[str], templates: list[str] | dict[str, list[str]]) -> None:
    """Raises InputError for an empty class name or unusable templates.

    Templates must contain {c}, the placeholder of the class name; a dict contains complete texts by
    class.
    """
    if "" in classes:
        raise InputError(
            f"classnames.txt: line {classes.index('') + 1} is empty; expected a class name"
        )
    if not templates:
        raise InputError(
            "zeroshot_classification_templates.txt is empty; expected a line such as: a photo "
            "of a {c}."
        )
    for line, template in enumerate(templates if isinstance(templates, list) else [], start=1):
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
