"""The outcome of every test sample, recorded while CLIP_benchmark computes its metrics, and intervals from them.

Every number that is shown of a measure (score, interval, paired difference, McNemar's p-value) comes from the same
outcomes, so a score cannot be outside its own interval.
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from clip_benchmark.metrics import image_caption_selection, linear_probe, zeroshot_classification, zeroshot_retrieval
from scipy.stats import binomtest, norm
from torch.utils.data import DataLoader

from ..environment import replaced
from ..errors import InputError, reason
from ..files import whole_file
from .features import Features

MEAN, RECALL, PRECISION, IOU, RMSE = "mean", "recall", "precision", "iou", "rmse"
RESAMPLES, CONFIDENCE = 1000, 0.95
Z = norm.ppf((1 + CONFIDENCE) / 2)


class Outcome(NamedTuple):
    """Each test sample's contribution to a score: two arrays with a row per sample.

    MEAN: points scored and points possible (an image's five captions). RECALL (mean per-class recall): whether the
    sample is right, and its class. PRECISION (mean average precision): scores and labels, [N, classes]. IOU (mean
    IoU): the pixels of each class in both and in either, [N, classes]. RMSE: sum of squared errors, and pixels.
    """

    kind: str
    scored: np.ndarray
    of: np.ndarray


class Estimate(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def estimate(outcome: Outcome, dataset: str) -> Estimate:
    """Returns the score of an outcome with its 95 % interval over the test samples.

    Means and mean recalls have Wilson's score interval, which keeps its coverage near 100 %. Its sample size is the
    effective one (Korn and Graubard, 1998) if a sample has several parts or a class weighs more than its samples.
    Other measures have the percentile bootstrap.

    Args:
        dataset: its name; the bootstrap resamples each data set independently, from a fixed seed.
    """
    if outcome.kind in (MEAN, RECALL):
        return _wilson(_proportion(outcome))
    drawn = _draws([outcome], dataset)[:, 0]
    return Estimate(_score(outcome), *map(float, np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])))


def difference(first: Outcome, second: Outcome, dataset: str) -> Estimate:
    """Returns what `second` is ahead of `first` on the same samples, with the paired 95 % interval.

    For means and mean recalls this is Newcombe's hybrid score interval (1998, method 10): the Wilson limits of both,
    combined with the correlation of their samples. Other measures have the bootstrap over the same resamples.
    """
    if first.kind in (MEAN, RECALL):
        return _newcombe(_proportion(first), _proportion(second))
    drawn = np.subtract(*_draws([second, first], dataset).T)
    limits = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(_score(second) - _score(first), *map(float, limits))


def mean_of(parts: Sequence[Estimate], dependent: bool = False) -> Estimate:
    """Returns the mean of estimates: their distances to the limits are combined by squares, or added if `dependent`."""
    values, lows, highs = np.array(parts, dtype=np.float64).T
    power = 1 if dependent else 2

    def margin(distances: np.ndarray) -> float:
        return float((distances**power).sum() ** (1 / power) / len(parts))

    value = float(values.mean())
    return Estimate(value, value - margin(values - lows), value + margin(highs - values))


def mcnemar(first: Outcome, second: Outcome) -> float | None:
    """Returns the p-value of McNemar's exact test that two models are right equally often; None if a sample has
    several parts."""
    if first.kind != MEAN or first.of.max() > 1:
        return None
    only_first, only_second = (first.scored > second.scored).sum(), (second.scored > first.scored).sum()
    return float(binomtest(only_first, only_first + only_second).pvalue) if only_first + only_second else 1.0


class _Proportion(NamedTuple):
    """A proportion, the number of independent samples that would vary as much, and each sample's deviation from it."""

    value: float
    size: float
    deviations: np.ndarray
    is_binary: bool  # each sample is right or wrong and weighs the same


def _proportion(outcome: Outcome) -> _Proportion:
    scored, of = (np.asarray(part, np.float64) for part in outcome[1:])
    if outcome.kind == RECALL:
        _, place, sizes = np.unique(of, return_inverse=True, return_counts=True)
        weights = 1 / sizes[place] / len(sizes)
        value = float((weights * scored).sum())
        return _Proportion(value, len(sizes) ** 2 / (1 / sizes).sum(), weights * (scored - value), False)
    value, size = float(scored.sum() / of.sum()), float(len(of))
    deviations = scored - value * of
    if of.max() > 1:
        variance = size / max(size - 1, 1) * (deviations**2).sum() / of.sum() ** 2
        size = min(value * (1 - value) / variance, of.sum()) if variance > 0 else size
    return _Proportion(value, size, deviations, of.max() <= 1)


def _wilson(proportion: _Proportion) -> Estimate:
    p, size = proportion.value, proportion.size
    centre, width = p + Z**2 / (2 * size), Z * math.sqrt(max(p * (1 - p), 0) / size + Z**2 / (4 * size**2))
    low, high = ((centre + sign * width) / (1 + Z**2 / size) for sign in (-1, 1))
    return Estimate(p, max(min(float(low), p), 0.0), min(max(float(high), p), 1.0))  # at 0 and 1 up to rounding


def _newcombe(first: _Proportion, second: _Proportion) -> Estimate:
    one, two = _wilson(first), _wilson(second)
    shared = (first.deviations * second.deviations).sum()
    if first.is_binary and shared > 0:  # Newcombe's continuity correction: n/2 from n times the covariance
        shared = max(shared - 0.5, 0.0)
    spread = math.sqrt((first.deviations**2).sum() * (second.deviations**2).sum())
    correlation = shared / spread if spread else 0.0

    def margin(up: float, down: float) -> float:
        return math.sqrt(max(up**2 - 2 * correlation * up * down + down**2, 0.0))

    value = two.value - one.value
    low = value - margin(two.value - two.low, one.high - one.value)
    return Estimate(value, low, value + margin(two.high - two.value, one.value - one.low))


def _score(outcome: Outcome) -> float:
    once = np.ones((1, len(outcome.scored)))
    scored, of = (part.reshape(len(part), -1) for part in outcome[1:])
    return float(SCORES[outcome.kind](once, scored, of)[0])


def _draws(outcomes: list[Outcome], dataset: str) -> np.ndarray:
    """Returns each model's score on every resample of the same test samples, [RESAMPLES, models]."""
    rows = np.stack([part.reshape(len(part), -1) for outcome in outcomes for part in outcome[1:]], axis=1)
    distinct, frequency = np.unique(rows, axis=0, return_counts=True)  # equal samples are resampled together
    rng = np.random.default_rng(zlib.crc32(dataset.encode()))
    counts = rng.multinomial(frequency.sum(), frequency / frequency.sum(), size=RESAMPLES)
    models = np.split(distinct, rows.shape[1] // 2, axis=1)  # [U, 2, classes or 1] each
    return np.stack([SCORES[outcomes[0].kind](counts, *model.swapaxes(0, 1)) for model in models], axis=1)


def _precisions(counts: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the mean average precisions; equal scores share a rank."""
    by_class = []
    for score, label in zip(scores.T, labels.T, strict=True):
        order = np.argsort(-score, kind="stable")
        last = np.searchsorted(-score[order], -score[order], side="right") - 1  # of the equal scores
        ranked, relevant = counts[:, order], counts[:, order] * label[order]
        precision = (relevant.cumsum(axis=1) / np.maximum(ranked.cumsum(axis=1), 1))[:, last]
        by_class.append((precision * relevant).sum(axis=1) / np.maximum(relevant.sum(axis=1), 1))
    return np.mean(by_class, axis=0)


def _overlaps(counts: np.ndarray, both: np.ndarray, either: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # a class that a resample does not show
        return np.nanmean(counts @ both / (counts @ either), axis=1)


def _errors(counts: np.ndarray, squares: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    return np.sqrt(counts @ squares / (counts @ pixels))[:, 0]


SCORES = {PRECISION: _precisions, IOU: _overlaps, RMSE: _errors}


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
        outcomes.update(_of_logits(logits, target, "", logits.shape[1]))
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
    logits, target = infer(model, ordered, *options)
    outcomes |= _of_logits(logits.float(), target, "lp_", num_classes=int(target.max()))


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
        outcomes[f"image_retrieval_recall@{k}"] = Outcome(MEAN, hits.astype(np.int32), captions.astype(np.int32))
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


def _of_logits(logits: torch.Tensor, target: torch.Tensor, prefix: str, num_classes: int) -> dict[str, Outcome]:
    if target.dim() == 2:  # one column per class
        return {"mean_average_precision": Outcome(PRECISION, logits.float().numpy(), target.numpy().astype(np.uint8))}
    labels = target.numpy().astype(np.int32)
    # Equal logits: CLIP_benchmark takes the first of topk for the accuracy, and argmax for the mean recall.
    k = 5 if num_classes >= 5 else 1  # as it asks for top-5 accuracy
    first = logits.topk(k, 1, True, True)[1][:, 0]
    return {
        f"{prefix}acc1": right((first == target).numpy()),
        f"{prefix}mean_per_class_recall": Outcome(
            RECALL, (logits.argmax(dim=1) == target).numpy().astype(np.uint8), labels
        ),
    }
