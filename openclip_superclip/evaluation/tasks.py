"""Metrics of one model on one data set from its cached features, with the outcome of every test sample.

Most are CLIP_benchmark's, called as by its command line; few-shot and nearest-neighbour accuracies are scikit-learn's.
"""

import contextlib
import math
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from clip_benchmark.metrics import image_caption_selection, linear_probe, zeroshot_classification, zeroshot_retrieval
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..environment import replaced
from ..errors import InputError
from .datasets import DENSE
from .features import Features, finite
from .outcomes import MEAN, PRECISION, RECALL, Outcome, estimate, right

SEED = 0  # CLIP_benchmark's default
RECALL_K = [1, 5]
SHOTS = (1, 2, 4, 8, 16)  # images per class
FEWSHOT_DRAWS = 5
NEIGHBOURS = 20

Metrics = dict[str, float | None]
Outcomes = dict[str, Outcome]


class Settings(NamedTuple):
    """How to evaluate; the defaults of the command line are CLIP_benchmark's."""

    device: str  # cpu or cuda
    precision: str  # amp or fp32
    batch_size: int
    workers: int
    probe_lr: float
    probe_epochs: int
    probe_val_split: str | None
    dense_lr: float
    dense_epochs: int
    finetune: bool

    def of_task(self, task: str) -> dict:
        """Returns the settings on which the metrics of a task depend."""
        more = {
            "zeroshot_retrieval": {"recall_k": RECALL_K},
            "linear_probe": {
                "batch_size": self.batch_size, "lr": self.probe_lr, "epochs": self.probe_epochs,
                "val_split": self.probe_val_split, "seed": SEED,
            },
            "few_shot": {"shots": list(SHOTS), "draws": FEWSHOT_DRAWS},
            "knn": {"neighbours": NEIGHBOURS},
            **{kind: {"lr": self.dense_lr, "epochs": self.dense_epochs, "finetune": self.finetune} for kind in DENSE},
        }  # fmt: skip
        return {"precision": self.precision, **more.get(task, {})}

    def splits(self, task: str) -> tuple[str, ...]:
        """Returns the splits that a task reads."""
        if task == "linear_probe":
            return ("test", "train", *filter(None, [self.probe_val_split]))
        return ("test", "train") if task in ("few_shot", "knn", *DENSE) else ("test",)

    def autocast(self) -> torch.autocast:
        """Returns the context in which CLIP_benchmark calls a model."""
        return torch.autocast(self.device, enabled=self.precision == "amp")


class _CachedImages(nn.Module):
    """A model that receives features instead of images, and only encodes texts."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def encode_image(self, features: Tensor) -> Tensor:
        return features.flatten(1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return finite(self.model.encode_text(tokens), "texts")


class _Batches:
    """A data loader for CLIP_benchmark: features as one-pixel images with D channels."""

    def __init__(self, features: Features, batch_size: int, dataset: object):
        self.features, self.batch_size, self.dataset = features, batch_size, dataset

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | list[list[str]]]]:
        for start in range(0, len(self.features.targets), self.batch_size):
            some = slice(start, start + self.batch_size)
            yield self.features.images[some, ..., None, None].clone(), self.features.targets[some]


def evaluate(
    model: nn.Module, tokenizer: Callable, dataset: object, task: str, settings: Settings, by_split: dict[str, Features]
) -> tuple[Metrics, Outcomes]:
    """Returns metrics by name, CLIP_benchmark's under its own, and outcomes; undefined metrics are None.

    Raises InputError if a score would be meaningless.

    Args:
        model: on `settings.device`.
        dataset: the test split; only class names and templates are used.
        by_split: the features of the task's splits.
    """
    test = by_split["test"]
    classes = getattr(dataset, "classes", None)
    if isinstance(test.targets, Tensor):
        for features in by_split.values():
            _check_labels(features.targets, classes)
        fitted = [int(features.targets.max()) for split, features in by_split.items() if split != "test"]
        if fitted and (label := int(test.targets.max())) > max(fitted):
            raise InputError(f"test holds the label {label}, which what it is fitted to lacks")
    cached, options = _CachedImages(model), {"device": settings.device, "amp": settings.precision == "amp"}
    batches = {split: _Batches(features, settings.batch_size, dataset) for split, features in by_split.items()}
    torch.manual_seed(SEED)
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():  # CLIP_benchmark prints
        warnings.filterwarnings("ignore", module="sklearn")  # on classes without samples in a small data set
        if task == "zeroshot_retrieval":
            metrics, outcomes = _retrieval(cached, tokenizer, batches["test"], options)
        elif task == "image_caption_selection":
            metrics, outcomes = _caption_selection(cached, tokenizer, batches["test"], options)
        elif task == "linear_probe":
            metrics, outcomes = _linear_probe(cached, batches, settings, options)
        elif task in ("few_shot", "knn"):
            metrics, outcomes = (few_shot if task == "few_shot" else nearest_neighbours)(by_split)
        else:
            check_prompts(dataset.classes, dataset.templates)
            metrics, outcomes = _zero_shot(cached, tokenizer, batches["test"], options)
    values = {name: estimate(outcome, "").value for name, outcome in outcomes.items()}
    # CLIP_benchmark's value, up to rounding in a different batch order.
    metrics |= {k: v for k, v in values.items() if not math.isclose(v, metrics[k], abs_tol=1e-6)}
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in metrics.items()}, outcomes


@contextlib.contextmanager
def _recorded(owner: object, name: str) -> Iterator[list[tuple[tuple, object]]]:
    """Yields the list of a function's calls, (arguments, result) each."""
    calls, function = [], getattr(owner, name)

    def recording(*args, **options):
        calls.append((args, function(*args, **options)))
        return calls[-1][1]

    with replaced(owner, **{name: recording}):
        yield calls


def _zero_shot(model, tokenizer, test: _Batches, options: dict) -> tuple[Metrics, Outcomes]:
    classes, templates = test.dataset.classes, test.dataset.templates
    with _recorded(zeroshot_classification, "run_classification") as calls:
        metrics = zeroshot_classification.evaluate(model, test, tokenizer, classes, templates, **options)
    logits, target = calls[-1][1]
    return metrics, _of_logits(logits, target, "", logits.shape[1])


def _retrieval(model, tokenizer, test: _Batches, options: dict) -> tuple[Metrics, Outcomes]:
    """Outcomes are, for each image, how many of its captions find it, and whether it finds one of them."""
    captions = np.array([len(texts) for texts in test.features.targets])
    ks = [k for k in RECALL_K if k <= len(captions)]  # topk fails with fewer images
    with _recorded(zeroshot_retrieval, "batchify") as calls:
        metrics = zeroshot_retrieval.evaluate(model, test, tokenizer, recall_k_list=ks, **options)
    image_of_caption, outcomes = np.repeat(np.arange(len(captions)), captions), {}
    for k, (_, by_text), (_, by_image) in zip(ks, calls[::2], calls[1::2], strict=True):
        hits = np.bincount(image_of_caption, (by_text > 0).numpy(), minlength=len(captions))
        outcomes[f"image_retrieval_recall@{k}"] = Outcome(MEAN, hits.astype(np.int32), captions.astype(np.int32))
        outcomes[f"text_retrieval_recall@{k}"] = right((by_image > 0).numpy())
    return metrics, outcomes


def _caption_selection(model, tokenizer, test: _Batches, options: dict) -> tuple[Metrics, Outcomes]:
    """Outcomes are whether the right caption is selected for each image, and the reverse."""
    copy = SimpleNamespace(**vars(torch))  # of the module, to record the lists of which it makes a tensor
    with replaced(image_caption_selection, torch=copy), _recorded(copy, "Tensor") as calls:
        metrics = image_caption_selection.evaluate(model, test, tokenizer, **options)
    names = ("image_acc", "text_acc", "acc")
    return metrics, {name: right(values) for name, ((values,), _) in zip(names, calls, strict=True)}


def _linear_probe(model, batches: dict[str, _Batches], settings, options: dict) -> tuple[Metrics, Outcomes]:
    """With a validation split the weight decay is tuned; without one it is 0."""
    val = batches.get(settings.probe_val_split)
    with tempfile.TemporaryDirectory(prefix="superclip-probe-") as folder, _recorded(linear_probe, "infer") as calls:
        metrics = evaluate_probe(
            model, batches["train"], batches["test"], fewshot_k=-1, batch_size=settings.batch_size,
            num_workers=settings.workers, lr=settings.probe_lr, epochs=settings.probe_epochs, model_id="features",
            seed=SEED, feature_root=folder, val_dataloader=val, normalize=True, **options,
        )  # fmt: skip
    (probe, loader, *rest), _ = calls[-1]
    in_order = DataLoader(loader.dataset, batch_size=loader.batch_size)  # CLIP_benchmark's loader is shuffled
    logits, target = linear_probe.infer(probe, in_order, *rest)
    return metrics, _of_logits(logits.float(), target, "lp_", num_classes=int(target.max()))


def evaluate_probe(*args, device: str, **options) -> Metrics:
    """Returns the result of CLIP_benchmark's `linear_probe.evaluate`, also on the CPU.

    CLIP_benchmark asserts that it runs on a GPU, "else too slow". The CPU is fast enough for thousands of images.
    """
    if device == "cuda":
        return linear_probe.evaluate(*args, device=device, **options)
    autocast = torch.autocast

    def stay(moved: Tensor | nn.Module) -> Tensor | nn.Module:
        return moved

    with (
        replaced(Tensor, cuda=stay),
        replaced(nn.Module, cuda=stay),
        replaced(nn, DataParallel=lambda module, device_ids: module),
        replaced(torch, autocast=lambda device_type, **options: autocast(str(device_type), **options)),
    ):
        return linear_probe.evaluate(*args, device=_AcceptedCPU(device), **options)


class _AcceptedCPU(str):
    """The CPU's device name, which also equals the name that CLIP_benchmark asserts."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return other in ("cuda", str(self))


def _of_logits(logits: Tensor, target: Tensor, prefix: str, num_classes: int) -> Outcomes:
    if target.dim() == 2:  # one column per class
        return {"mean_average_precision": Outcome(PRECISION, logits.float().numpy(), target.numpy().astype(np.uint8))}
    labels = target.numpy().astype(np.int32)
    # Equal logits: CLIP_benchmark takes the first of topk for the accuracy, and argmax for the mean recall.
    k = 5 if num_classes >= 5 else 1  # CLIP_benchmark computes top-5 accuracy
    first = logits.topk(k, 1, True, True)[1][:, 0]
    hits = (logits.argmax(dim=1) == target).numpy().astype(np.uint8)
    return {
        f"{prefix}acc1": right((first == target).numpy()),
        f"{prefix}mean_per_class_recall": Outcome(RECALL, hits, labels),
    }


def few_shot(by_split: dict[str, Features]) -> tuple[Metrics, Outcomes]:
    """Returns the accuracy of a logistic regression on k images per class, mean over draws, as `fewshot_acc1@k`.

    The features are normalised as in CLIP_benchmark's probe, then standardised over the drawn images; other settings
    are scikit-learn's defaults. None if a class has fewer images.
    """
    images, labels = _arrays(by_split["train"])
    test, expected = _arrays(by_split["test"])
    metrics, outcomes = {"draws": FEWSHOT_DRAWS}, {}
    fewest = min(np.unique(labels, return_counts=True)[1])
    for shots in tqdm(SHOTS, desc="few-shot", leave=False, disable=None):
        name = f"fewshot_acc1@{shots}"
        metrics[name] = None
        if shots > fewest:
            continue
        hits = np.zeros(len(expected), np.int32)
        for draw in range(FEWSHOT_DRAWS):
            drawn = _drawn(labels, shots, draw)
            fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            hits += fitted.fit(images[drawn], labels[drawn]).predict(test) == expected
        metrics[name] = statistics.fmean(hits.tolist()) / FEWSHOT_DRAWS
        outcomes[name] = Outcome(MEAN, hits, np.full(len(expected), FEWSHOT_DRAWS, np.int32))
    return metrics, outcomes


def _drawn(labels: np.ndarray, shots: int, draw: int) -> np.ndarray:
    """Returns the indices of `shots` images of every class; the same for every model."""
    order = np.random.default_rng((draw, shots)).permutation(len(labels))
    return np.concatenate([order[labels[order] == label][:shots] for label in np.unique(labels)])


def nearest_neighbours(by_split: dict[str, Features]) -> tuple[Metrics, Outcomes]:
    """Returns the accuracy of distance-weighted nearest neighbours as `knn_acc1`."""
    images, labels = _arrays(by_split["train"])
    test, expected = _arrays(by_split["test"])
    neighbours = min(NEIGHBOURS, len(labels))
    fitted = KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute", weights="distance")
    fitted.fit(images, labels)
    starts = tqdm(range(0, len(test), 1000), desc="neighbours", unit=" k images", leave=False, disable=None)
    hits = np.concatenate([fitted.predict(test[start : start + 1000]) for start in starts]) == expected
    return {"knn_acc1": float(hits.mean()), "neighbours": neighbours}, {"knn_acc1": right(hits)}


def _arrays(features: Features) -> tuple[np.ndarray, np.ndarray]:
    return normalize(features.images.float(), dim=-1).numpy(), features.targets.numpy()


def check_prompts(classes: list[str], templates: list[str] | dict[str, list[str]]) -> None:
    """Raises InputError for an empty class name or unusable templates, and warns about equal class names.

    Templates must contain {c}, the placeholder of the class name; a dict contains complete texts by class.
    """
    if "" in classes:
        raise InputError(f"classnames.txt: line {classes.index('') + 1} is empty; expected a class name")
    if repeated := sorted({name for name in classes if classes.count(name) > 1}):
        print(
            f"warning: classnames.txt: {len(repeated)} names occur more than once ({', '.join(repeated[:3])}): images "
            "of these classes cannot be told apart, and each counts as right for one of them only",
            file=sys.stderr,
        )
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


def _check_labels(labels: Tensor, classes: list[str] | None) -> None:
    num_classes = math.inf if classes is None else len(classes)
    if labels.dim() == 2:  # one column per class
        if classes is not None and labels.shape[1] != num_classes:
            raise InputError(f"its labels have {labels.shape[1]} columns, but there are {num_classes} class names")
    elif (smallest := int(labels.min())) < 0:
        raise InputError(f"it holds the label {smallest}; expected 0 or more")
    elif (largest := int(labels.max())) >= num_classes:
        raise InputError(f"it holds the label {largest}, but there are {num_classes} class names, from 0 on")
