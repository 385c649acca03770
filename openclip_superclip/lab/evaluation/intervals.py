"""Outcomes of test samples, and scores, intervals and differences computed from them.

All numbers of a measure (score, interval, paired difference) are computed from the same outcomes, so a score cannot be
outside its own interval.
"""

import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from ...files import whole_file

MEAN, RECALL, PRECISION, IOU, RMSE = "mean", "recall", "precision", "iou", "rmse"
RESAMPLES, CONFIDENCE = 1000, 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


class Outcome(NamedTuple):
    """Each test sample's contribution to a score: two arrays with a row per sample.

    MEAN: points scored and points possible (an image's five captions). RECALL (mean per-class recall): whether the
    sample is right, and its class. PRECISION (mean average precision): distinct scores, and labels, [N, classes]. IOU
    (mean IoU): pixels of each class in both and in either, [N, classes]. RMSE: sum of squared errors, and pixels.
    """

    kind: str
    scored: np.ndarray
    of: np.ndarray


def right(hits: np.ndarray) -> Outcome:
    """Returns the outcome of a mean over samples that are right or wrong."""
    return Outcome(MEAN, np.asarray(hits).astype(np.uint8), np.ones(len(hits), np.uint8))


class Estimate(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def estimate(outcome: Outcome, dataset: str) -> Estimate:
    """Returns the score of an outcome with its 95 % interval over the test samples.

    Means and mean recalls have Wilson's score interval, which keeps its coverage near 100 %. Its sample size is the
    effective one (Korn and Graubard, 1998) if a sample has several parts or a class weighs more than its samples.
    Other measures have the percentile bootstrap, which resamples each data set independently, from a fixed seed.
    """
    if outcome.kind in (MEAN, RECALL):
        return wilson(*_proportion(outcome)[:2])
    return Estimate(_score(outcome), *_limits(_draws([outcome], dataset)[:, 0]))


def difference(first: Outcome, second: Outcome, dataset: str) -> Estimate:
    """Returns the difference `second` - `first` on the same samples, with the paired 95 % interval.

    For means and mean recalls this is Newcombe's hybrid score interval (1998, method 10): the Wilson limits of both,
    combined with the correlation of their samples. Other measures have the bootstrap over the same resamples.
    """
    if first.kind in (MEAN, RECALL):
        return _newcombe(_proportion(first), _proportion(second))
    drawn = np.subtract(*_draws([second, first], dataset).T)
    return Estimate(_score(second) - _score(first), *_limits(drawn))


def mean_of(parts: Sequence[Estimate]) -> Estimate:
    """Returns the mean of independent estimates; half-widths are combined as root sum of squares."""
    values, lows, highs = np.array(parts, dtype=np.float64).T
    value = float(values.mean())
    below, above = (float(np.sqrt((part**2).sum()) / len(parts)) for part in (values - lows, highs - values))
    return Estimate(value, value - below, value + above)


class _Proportion(NamedTuple):
    """A proportion, its effective sample size, and each sample's deviation from it."""

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


def wilson(p: float, size: float) -> Estimate:
    """Returns a proportion with its Wilson interval, given the number of samples."""
    centre, width = p + Z**2 / (2 * size), Z * math.sqrt(max(p * (1 - p), 0) / size + Z**2 / (4 * size**2))
    low, high = ((centre + sign * width) / (1 + Z**2 / size) for sign in (-1, 1))
    return Estimate(p, max(min(float(low), p), 0.0), min(max(float(high), p), 1.0))  # at 0 and 1 up to rounding


def _newcombe(first: _Proportion, second: _Proportion) -> Estimate:
    one, two = wilson(*first[:2]), wilson(*second[:2])
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


def _limits(drawn: np.ndarray) -> list[float]:
    return np.nanquantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()


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
    """Returns the mean average precisions, given distinct scores."""
    by_class = []
    for score, label in zip(scores.T, labels.T, strict=True):
        order = np.argsort(-score)
        ranked, relevant = counts[:, order], counts[:, order] * label[order]
        precision = relevant.cumsum(axis=1) / np.maximum(ranked.cumsum(axis=1), 1)
        by_class.append((precision * relevant).sum(axis=1) / np.maximum(relevant.sum(axis=1), 1))
    return np.mean(by_class, axis=0)


@np.errstate(invalid="ignore")  # a class without samples in a resample
def _overlaps(counts: np.ndarray, both: np.ndarray, either: np.ndarray) -> np.ndarray:
    return np.nanmean(counts @ both / (counts @ either), axis=1)


@np.errstate(invalid="ignore")  # a resample without labelled pixels: NaN
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
    """Returns outcomes by measure, {} if the file cannot be read."""
    try:
        with np.load(file) as arrays:
            names = [name.removesuffix(" scored") for name in arrays.files if name.endswith(" scored")]
            return {
                measure: Outcome(kind, arrays[f"{measure} {kind} scored"], arrays[f"{measure} {kind} of"])
                for measure, _, kind in (name.rpartition(" ") for name in names)
            }
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):  # none, or damaged
        return {}
