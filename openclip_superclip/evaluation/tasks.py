"""Metrics of one model on one data set out of its kept features: CLIP_benchmark's, called as its own command line calls
them, and sklearn's of few pictures and of neighbours."""

import contextlib
import logging
import math
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
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
from tqdm import tqdm

from ..environment import replaced
from ..errors import InputError
from .datasets import DENSE
from .dense import DenseSettings
from .features import FeatureBatches, Features
from .outcomes import MEAN, Outcome, classified, estimate, probed, retrieved, right, selected


def evaluate_probe(*args, device: str, **options) -> dict[str, float]:
    """Returns what CLIP_benchmark's `linear_probe.evaluate` returns, on the CPU as well.

    It asserts that it runs on a GPU, "else too slow", and moves what it makes there. A data set of some thousand
    pictures is not too slow: on the CPU all stays where it is.
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
    """The CPU's name, which also equals the one that CLIP_benchmark asserts."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return other in ("cuda", str(self))


SHOTS = (1, 2, 4, 8, 16)  # pictures a class
FEWSHOT_DRAWS = 5
NEIGHBOURS = 20
ITERATIONS = 1000


def few_shot(by_split: dict[str, Features]) -> tuple[dict[str, float | None], dict[str, Outcome]]:
    """Returns the accuracy of a logistic regression on k pictures a class, mean over draws, as `fewshot_acc1@k`.

    The features are normalised as CLIP_benchmark's probe normalises them, then standardised by the pictures drawn;
    sklearn's defaults otherwise. None where a class has fewer pictures.
    """
    pictures, labels = _arrays(by_split["train"])
    test, expected = _arrays(by_split["test"])
    metrics, outcomes = {"draws": FEWSHOT_DRAWS}, {}
    fewest = min(np.unique(labels, return_counts=True)[1])
    with tqdm(total=len(SHOTS) * FEWSHOT_DRAWS, desc="few-shot", unit=" fits", leave=False, disable=None) as progress:
        for shots in SHOTS:
            hits = np.zeros(len(expected), np.int32)
            for draw in range(FEWSHOT_DRAWS if shots <= fewest else 0):
                drawn = _drawn(labels, shots, draw)
                fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=ITERATIONS))
                hits += fitted.fit(pictures[drawn], labels[drawn]).predict(test) == expected
                progress.update()
            metrics[f"fewshot_acc1@{shots}"] = None
            if shots <= fewest:
                metrics[f"fewshot_acc1@{shots}"] = statistics.fmean(hits.tolist()) / FEWSHOT_DRAWS
                of = np.full(len(expected), FEWSHOT_DRAWS, np.int32)
                outcomes[f"fewshot_acc1@{shots}"] = Outcome(MEAN, hits, of)
    return metrics, outcomes


def nearest_neighbours(by_split: dict[str, Features]) -> tuple[dict[str, float], dict[str, Outcome]]:
    """Returns, as `knn_acc1`, how often the nearest training pictures vote right; nearer ones weigh more."""
    pictures, labels = _arrays(by_split["train"])
    test, expected = _arrays(by_split["test"])
    neighbours = min(NEIGHBOURS, len(labels))
    fitted = KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute", weights="distance")
    fitted.fit(pictures, labels)
    hits = [
        fitted.predict(test[start : start + 1000]) == expected[start : start + 1000]
        for start in tqdm(
            range(0, len(test), 1000), desc="nearest neighbours", unit=" k pictures", leave=False, disable=None
        )
    ]
    hits = np.concatenate(hits)
    return {"knn_acc1": float(hits.mean()), "neighbours": neighbours}, {"knn_acc1": right(hits)}


def _arrays(features: Features) -> tuple[np.ndarray, np.ndarray]:
    return normalize(features.images.float(), dim=-1).numpy(), features.targets.numpy()


def _drawn(labels: np.ndarray, shots: int, draw: int) -> np.ndarray:
    """Returns the places of `shots` pictures of every class; the same for every model."""
    rng = np.random.default_rng((draw, shots))
    order = rng.permutation(len(labels))
    return np.concatenate([order[labels[order] == label][:shots] for label in np.unique(labels)])


def check_prompts(classes: list[str], templates: list[str] | dict[str, list[str]]) -> None:
    """Raises InputError for an empty class name, and where there is no template or one without {c}.

    CLIP_benchmark puts the class name there; a dict holds whole texts by class.
    """
    for line, name in enumerate(classes, start=1):
        if not name:
            raise InputError(f"classnames.txt: line {line} is empty; expected a class name")
    if repeated := sorted({name for name in classes if classes.count(name) > 1}):
        logging.warning(
            f"classnames.txt: {len(repeated)} names occur more than once ({', '.join(repeated[:3])}): images of these "
            "classes cannot be told apart, and each counts as right for one of them only"
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


SEED = 0  # CLIP_benchmark's default
RECALL_K = [1, 5]
DENSE_BATCH = 16


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

    def that_matter(self, task: str) -> dict:
        """Returns those on which the metrics of a task depend."""
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

    @property
    def dense(self) -> DenseSettings:
        """How segmentation and depth are fitted."""
        return DenseSettings(self.dense_lr, self.dense_epochs, DENSE_BATCH, self.workers, self.device, SEED)

    def autocast(self) -> torch.autocast:
        """Returns the context in which CLIP_benchmark calls a model."""
        return torch.autocast(self.device, enabled=self.precision == "amp")


class _KeptPictures(nn.Module):
    """A model that is given features where it expects pictures."""

    def __init__(self, model: FiniteFeatures):
        super().__init__()
        self.encode_text = model.encode_text

    def encode_image(self, features: Tensor) -> Tensor:
        return features.flatten(1)


def evaluate(
    model: FiniteFeatures,
    tokenizer: Callable,
    dataset: object,
    task: str,
    settings: Settings,
    by_split: dict[str, Features],
) -> tuple[dict[str, float | None], dict[str, Outcome]]:
    """Returns metrics by name, CLIP_benchmark's under its own and None where it says that one is undefined, and for
    those that are shown the outcome of every test sample.

    Raises InputError where a score would mean nothing.

    Args:
        model: on `settings.device`; only its texts are computed.
        dataset: the test split, of which only class names and templates are read.
        by_split: the features of the splits that the task reads.
    """
    kept, options = _KeptPictures(model), {"device": settings.device, "amp": settings.precision == "amp"}
    loaders = {
        split: CheckedLoader(FeatureBatches(features, settings.batch_size, dataset), getattr(dataset, "classes", None))
        for split, features in by_split.items()
    }
    torch.manual_seed(SEED)
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():  # it prints as it goes
        warnings.filterwarnings("ignore", module="sklearn")  # of classes that a small data set does not show
        if task == "zeroshot_retrieval":
            ks = [k for k in RECALL_K if k <= len(by_split["test"].targets)]  # topk of fewer images is an error
            with retrieved(by_split["test"], ks) as outcomes:
                metrics = zeroshot_retrieval.evaluate(kept, loaders["test"], tokenizer, recall_k_list=ks, **options)
        elif task == "image_caption_selection":
            with selected() as outcomes:
                metrics = image_caption_selection.evaluate(kept, loaders["test"], tokenizer, **options)
        elif task == "linear_probe":
            fitted = [features.targets for split, features in by_split.items() if split != "test"]
            check_fitted(fitted, by_split["test"].targets)
            with probed() as outcomes:
                metrics = _probe(kept, loaders, settings, options)
        elif task in ("few_shot", "knn"):
            check_fitted([by_split["train"].targets], by_split["test"].targets)
            metrics, outcomes = (few_shot if task == "few_shot" else nearest_neighbours)(by_split)
        else:
            check_prompts(dataset.classes, dataset.templates)
            with classified() as outcomes:
                metrics = zeroshot_classification.evaluate(
                    kept, loaders["test"], tokenizer, dataset.classes, dataset.templates, **options
                )
    values = {name: estimate(outcome, "").value for name, outcome in outcomes.items()}
    # CLIP_benchmark's number, unless a probe's batches of another order round to another one.
    metrics |= {k: v for k, v in values.items() if not math.isclose(v, metrics[k], abs_tol=1e-6)}
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in metrics.items()}, outcomes


def _probe(kept: nn.Module, loaders: dict[str, CheckedLoader], settings: Settings, options: dict) -> dict[str, float]:
    """Returns the linear probe's metrics. Without a validation split it takes no weight decay, with one the best."""
    val = loaders.get(settings.probe_val_split)
    with tempfile.TemporaryDirectory(prefix="superclip-probe-") as features:
        return evaluate_probe(
            kept, loaders["train"], loaders["test"], fewshot_k=-1, batch_size=settings.batch_size,
            num_workers=settings.workers, lr=settings.probe_lr, epochs=settings.probe_epochs, model_id="features",
            seed=SEED, feature_root=features, val_dataloader=val, normalize=True, **options,
        )  # fmt: skip
