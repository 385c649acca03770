"""CLIP_benchmark's metrics of one model on one data set, called as its own command line calls them."""

import contextlib
import math
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from clip_benchmark.datasets.builder import get_dataset_collate_fn
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from torch import nn
from torch.utils.data import DataLoader

from ..errors import InputError
from .datasets import Data
from .linear_probe import evaluate_probe
from .score_checks import CheckedLoader, FiniteFeatures, check_prompts

SEED = 0  # CLIP_benchmark's default
RECALL_K = [1, 5]


class Settings(NamedTuple):
    """How to evaluate; the defaults of the command line are CLIP_benchmark's."""

    device: str  # cpu or cuda
    precision: str  # amp or fp32
    batch_size: int
    workers: int
    probe_lr: float
    probe_epochs: int
    probe_val_split: str | None

    def that_matter(self, task: str) -> dict:
        """Returns those on which the metrics of a task depend."""
        if task == "zeroshot_retrieval":
            return {"precision": self.precision, "recall_k": RECALL_K}
        if task == "linear_probe":
            return {
                "precision": self.precision, "batch_size": self.batch_size, "lr": self.probe_lr,
                "epochs": self.probe_epochs, "val_split": self.probe_val_split, "seed": SEED,
            }  # fmt: skip
        return {"precision": self.precision}

    def splits(self, task: str) -> tuple[str, ...]:
        """Returns the splits that a task reads."""
        return ("test", "train", *filter(None, [self.probe_val_split])) if task == "linear_probe" else ("test",)


def evaluate(
    opened: tuple[nn.Module, Callable, Callable], data: Data, task: str, settings: Settings
) -> dict[str, float | None]:
    """Returns CLIP_benchmark's metrics under its names, None where it says that one is undefined.

    Raises InputError where a score would mean nothing.

    Args:
        opened: (model, transform, tokenizer), the model on `settings.device`.
    """
    model, transform, tokenizer = opened
    model = FiniteFeatures(model)
    torch.manual_seed(SEED)
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():  # it prints as it goes
        warnings.filterwarnings("ignore", module="sklearn")  # of classes that a small data set does not show
        dataset = data.build(transform, "test", task)
        loader = _loader(data, dataset, settings)
        options = {"device": settings.device, "amp": settings.precision == "amp"}
        if task == "zeroshot_retrieval":
            metrics = zeroshot_retrieval.evaluate(model, loader, tokenizer, recall_k_list=RECALL_K, **options)
        elif task == "linear_probe":
            metrics = _probe(model, transform, data, loader, settings, options)
        else:
            check_prompts(dataset.classes, dataset.templates)
            metrics = zeroshot_classification.evaluate(
                model, loader, tokenizer, dataset.classes, dataset.templates, **options
            )
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in metrics.items()}


def _loader(data: Data, dataset, settings: Settings) -> CheckedLoader:
    options = {"shuffle": False, "num_workers": settings.workers}
    if data.shards:
        loader = DataLoader(dataset.batched(settings.batch_size), batch_size=None, **options)
    else:
        collate = get_dataset_collate_fn(data.name)
        loader = DataLoader(dataset, batch_size=settings.batch_size, collate_fn=collate, **options)
    return CheckedLoader(loader, dataset.classes)


def _probe(
    model: nn.Module, transform: Callable, data: Data, test_loader: CheckedLoader, settings: Settings, options: dict
) -> dict[str, float]:
    """Returns the linear probe's metrics. Without a validation split it takes no weight decay, with one the best."""
    train, val = (
        _loader(data, data.build(transform, split, "linear_probe"), settings) if split else None
        for split in ("train", settings.probe_val_split)
    )
    with tempfile.TemporaryDirectory(prefix="superclip-probe-") as features:
        metrics = evaluate_probe(
            model, train, test_loader, fewshot_k=-1, batch_size=settings.batch_size, num_workers=settings.workers,
            lr=settings.probe_lr, epochs=settings.probe_epochs, model_id="features", seed=SEED, feature_root=features,
            val_dataloader=val, normalize=True, **options,
        )  # fmt: skip
    known = max(loader.largest_label for loader in (train, val) if loader is not None)
    if test_loader.largest_label > known:
        raise InputError(f"test holds the label {test_loader.largest_label}, which what the probe is fitted to lacks")
    return metrics
