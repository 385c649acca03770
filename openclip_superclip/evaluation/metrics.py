"""Metrics of one model on one data set out of its kept features: CLIP_benchmark's, called as its own command line calls
them, and sklearn's of few pictures and of neighbours."""

import contextlib
import math
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from clip_benchmark.metrics import image_caption_selection, zeroshot_classification, zeroshot_retrieval
from torch import Tensor, nn

from .dense_data import DENSE
from .dense_probe import DenseSettings
from .few_pictures import FEWSHOT_DRAWS, NEIGHBOURS, SHOTS, few_shot, nearest_neighbours
from .kept_features import FeatureBatches, Features
from .linear_probe import evaluate_probe
from .outcomes import Outcome, classified, probed, retrieved, selected
from .score_checks import CheckedLoader, FiniteFeatures, check_fitted, check_prompts

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
            with retrieved(by_split["test"], RECALL_K) as outcomes:
                metrics = zeroshot_retrieval.evaluate(
                    kept, loaders["test"], tokenizer, recall_k_list=RECALL_K, **options
                )
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
