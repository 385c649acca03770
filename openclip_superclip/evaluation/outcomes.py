"""What became of every test sample, noted while CLIP_benchmark computes its metrics: intervals are made of it."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from clip_benchmark.metrics import image_caption_selection, linear_probe, zeroshot_classification, zeroshot_retrieval
from scipy.stats import binomtest
from torch.utils.data import DataLoader

from ..environment import replaced
from ..errors import InputError, reason
from ..files import whole_file
from .features import Features

RESAMPLES = 1000


CONFIDENCE = 0.95


class Outcome(NamedTuple):
    """The test samples' part in a score, two arrays with a row a sample.

    Of a mean: what a sample scored in all, and out of how many (a picture's five captions). Of the mean recall of the
    classes: whether the sample is right, and its class. Of the mean average precision: scores and labels, [N, classes].
    Of the mean IoU: the pixels of each class in both and in either, [N, classes]. Of the root mean squared error: the
    sum of the squares, and of how many pixels.
    """

    kind: str
    scored: np.ndarray
    of: np.ndarray


def draws(outcomes: list[Outcome], dataset: str) -> np.ndarray:
    """Returns each model's score on every resample of the same test samples, [RESAMPLES, models], from a fixed seed.

    Args:
        outcomes: of one measure on one data set, of samples in the same order.
        dataset: its name: other data sets are resampled independently.
    """
    rows = np.stack([part.reshape(len(part), -1) for outcome in outcomes for part in outcome[1:]], axis=1)
    distinct, frequency = np.unique(rows, axis=0, return_counts=True)  # equal samples are resampled together
    rng = np.random.default_rng(zlib.crc32(dataset.encode()))
    counts = rng.multinomial(frequency.sum(), frequency / frequency.sum(), size=RESAMPLES)
    scores = SCORES[outcomes[0].kind]
    models = np.split(distinct, rows.shape[1] // 2, axis=1)  # [U, 2, classes or 1] each
    return np.stack([scores(counts, *model.swapaxes(0, 1)) for model in models], axis=1)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % percentile interval of draws."""
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def mcnemar(first: Outcome, second: Outcome) -> float | None:
    """Returns the p-value of McNemar's exact test that two models are right equally often; None where a sample has
    several parts."""
    if first.kind != MEAN or first.of.max() > 1:
        return None
    only_first, only_second = (first.scored > second.scored).sum(), (second.scored > first.scored).sum()
    return float(binomtest(only_first, only_first + only_second).pvalue) if only_first + only_second else 1.0


def _means(counts: np.ndarray, scored: np.ndarray, of: np.ndarray) -> np.ndarray:
    return (counts @ scored / (counts @ of))[:, 0]


def _recalls(counts: np.ndarray, hit: np.ndarray, label: np.ndarray) -> np.ndarray:
    of_class = np.equal(label, np.unique(label)).astype(float)  # [U, classes]
    with np.errstate(invalid="ignore"):  # a class that a resample does not show
        return np.nanmean(counts @ (hit * of_class) / (counts @ of_class), axis=1)


def _precisions(counts: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A resampled picture stands with its copies in the ranking."""
    by_class = []
    for score, label in zip(scores.T, labels.T, strict=True):
        order = np.argsort(-score, kind="stable")
        ranked, relevant = counts[:, order], counts[:, order] * label[order]
        precision = relevant.cumsum(axis=1) / np.maximum(ranked.cumsum(axis=1), 1)
        by_class.append((precision * relevant).sum(axis=1) / np.maximum(relevant.sum(axis=1), 1))
    return np.mean(by_class, axis=0)


def _overlaps(counts: np.ndarray, both: np.ndarray, either: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # a class that a resample does not show
        return np.nanmean(counts @ both / (counts @ either), axis=1)


def _errors(counts: np.ndarray, squares: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    return np.sqrt(counts @ squares / (counts @ pixels))[:, 0]


MEAN, RECALL, PRECISION, IOU, RMSE = "mean", "recall", "precision", "iou", "rmse"


SCORES = {MEAN: _means, RECALL: _recalls, PRECISION: _precisions, IOU: _overlaps, RMSE: _errors}


def write_outcomes(file: Path, outcomes: dict[str, Outcome]) -> None:
    """Writes outcomes by measure."""
    arrays = {
        f"{measure} {outcome.kind} {name}": getattr(outcome, name)
        for measure, outcome in outcomes.items()
        for name in ("scored", "of")
    }
    with whole_file(file) as opened:
        np.savez_compressed(opened, **arrays)


def read_outcomes(file: Path) -> dict[str, Outcome]:
    """Returns outcomes by measure, none where there is no such file; InputError where it is broken."""
    if not file.is_file():
        return {}
    try:
        with np.load(file) as arrays:
            names = dict.fromkeys(name.rpartition(" ")[0] for name in arrays.files)
            return {
                measure: Outcome(kind, arrays[f"{measure} {kind} scored"], arrays[f"{measure} {kind} of"])
                for measure, _, kind in (name.rpartition(" ") for name in names)
            }
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        result = file.name.replace(".outcomes.npz", ".json")
        raise InputError(
            f"{file} is broken ({reason(error)}): remove it and {result} beside it, and superclip "
            "evaluate measures that anew"
        ) from error


def right(hits: np.ndarray) -> Outcome:
    """Returns the outcome of a mean of which every sample is one part, right or wrong."""
    return Outcome(MEAN, np.asarray(hits).astype(np.uint8), np.ones(len(hits), np.uint8))


@contextmanager
def classified() -> Iterator[dict[str, Outcome]]:
    """Notes what zero-shot classification makes of each picture."""
    outcomes, run = {}, zeroshot_classification.run_classification

    def noted(*args, **options):
        logits, target = run(*args, **options)
        outcomes.update(_of_logits(logits, target, ""))
        return logits, target

    with replaced(zeroshot_classification, run_classification=noted):
        yield outcomes


@contextmanager
def probed() -> Iterator[dict[str, Outcome]]:
    """Notes what the fitted probe makes of each picture, in the data set's order: CLIP_benchmark's is shuffled."""
    outcomes, infer, last = {}, linear_probe.infer, []

    def noted(model, loader, *options):
        last[:] = model, loader, *options
        return infer(model, loader, *options)

    with replaced(linear_probe, infer=noted):
        yield outcomes
    model, loader, *options = last
    ordered = DataLoader(loader.dataset, batch_size=loader.batch_size)
    outcomes |= _of_logits(*infer(model, ordered, *options), "lp_")


@contextmanager
def retrieved(test: Features, recall_k: list[int]) -> Iterator[dict[str, Outcome]]:
    """Notes, for each picture, how many of its captions find it, and whether it finds one of them."""
    outcomes, found, batchify = {}, [], zeroshot_retrieval.batchify

    def noted(*args, **options):
        found.append(batchify(*args, **options))
        return found[-1]

    with replaced(zeroshot_retrieval, batchify=noted):
        yield outcomes
    captions = np.array([len(texts) for texts in test.targets])
    of_picture = np.repeat(np.arange(len(captions)), captions)
    for k, by_text, by_picture in zip(recall_k, found[::2], found[1::2], strict=True):
        hits = np.bincount(of_picture, (by_text > 0).numpy(), minlength=len(captions))
        outcomes[f"image_retrieval_recall@{k}"] = Outcome(MEAN, hits.astype(np.uint8), captions.astype(np.uint8))
        outcomes[f"text_retrieval_recall@{k}"] = right((by_picture > 0).numpy())


@contextmanager
def selected() -> Iterator[dict[str, Outcome]]:
    """Notes whether the right caption is chosen for each picture, and the reverse."""
    outcomes, lists = {}, []

    class Noted:
        """torch, which notes the lists that CLIP_benchmark averages."""

        __getattr__ = staticmethod(lambda name: getattr(torch, name))

        @staticmethod
        def Tensor(values: list[bool]) -> torch.Tensor:
            lists.append(values)
            return torch.Tensor(values)

    with replaced(image_caption_selection, torch=Noted()):
        yield outcomes
    outcomes |= {name: right(values) for name, values in zip(("image_acc", "text_acc", "acc"), lists, strict=True)}


def _of_logits(logits: torch.Tensor, target: torch.Tensor, prefix: str) -> dict[str, Outcome]:
    if target.dim() == 2:  # one column a class
        return {"mean_average_precision": Outcome(PRECISION, logits.float().numpy(), target.numpy().astype(np.uint8))}
    hits = (logits.argmax(dim=1) == target).numpy()
    labels = target.numpy().astype(np.int32)
    return {
        f"{prefix}acc1": right(hits),
        f"{prefix}mean_per_class_recall": Outcome(RECALL, hits.astype(np.uint8), labels),
    }
