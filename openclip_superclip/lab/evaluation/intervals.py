"""Outcomes of test samples, and scores, intervals and differences computed from them.

All numbers of a measure (score, interval, paired difference) are computed from the same outcomes,
so a score cannot be outside its own interval.
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
CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
LEAST = 10  # images of each class, and without it: with fewer, there is no interval
NO_INTERVAL = (
    f"[–]: no interval, which needs {LEAST} images with and without each class, and a bias of "
    "the score that is smaller than its standard error"
)


class Outcome(NamedTuple):
    """Each test sample's contribution to a score: two arrays with a row per sample.

    MEAN: points scored and points possible (an image's five captions). RECALL (mean per-class
    recall): whether the sample is right, and its class. PRECISION (mean average precision):
    distinct scores, and labels, [N, classes]. IOU (mean IoU): pixels of each class in both and in
    either, [N, classes]. RMSE: sum of squared errors, and pixels.
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
    low: float  # NaN if there is no interval
    high: float

    def limits(self) -> tuple[float, float] | None:
        """Returns the interval, or None if there is none."""
        return None if math.isnan(self.low) else (self.low, self.high)

    def text(self, format: str, factor: float = 1.0) -> str:
        """Returns the value and its interval, which is [–] if there is none."""
        value, low, high = (f"{factor * number:{format}}" for number in self)
        return f"{value} [{low}, {high}]" if self.limits() else f"{value} [–]"


def estimate(outcome: Outcome) -> Estimate:
    """Returns the score of an outcome with its 95 % interval over the test samples.

    Means and mean recalls have Wilson's score interval, which keeps its coverage near 100 %. Its
    sample size is the effective one (Korn and Graubard, 1998) if a sample has several parts or a
    class weighs more than its samples. Other measures have the jackknife's interval, on a scale
    that stabilises their variance. Its limits are NaN if there are too few samples.
    """
    if outcome.kind in (MEAN, RECALL):
        return wilson(*_proportion(outcome)[:2])
    return _jackknife_interval(_leave_one_out(outcome), outcome.kind)


def difference(first: Outcome, second: Outcome) -> Estimate:
    """Returns the difference `second` - `first` on the same samples, with the paired 95 % interval.

    For means and mean recalls this is Newcombe's hybrid score interval (1998, method 10): the
    Wilson limits of both, combined with the correlation of their samples. Other measures have the
    jackknife's interval.
    """
    if first.kind in (MEAN, RECALL):
        return _newcombe(_proportion(first), _proportion(second))
    one, two = _leave_one_out(first), _leave_one_out(second)
    both = _LeaveOneOut(two.score - one.score, two.without - one.without, min(one.least, two.least))
    return _jackknife_interval(both, "difference")


def mean_of(parts: Sequence[Estimate]) -> Estimate:
    """Returns the mean of independent estimates; half-widths are combined as root sum of
    squares."""
    values, lows, highs = np.array(parts, dtype=np.float64).T
    value = float(values.mean())
    below, above = (
        float(np.sqrt((part**2).sum()) / len(parts)) for part in (values - lows, highs - values)
    )
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
        return _Proportion(
            value, len(sizes) ** 2 / (1 / sizes).sum(), weights * (scored - value), False
        )
    value, size = float(scored.sum() / of.sum()), float(len(of))
    deviations = scored - value * of
    if of.max() > 1:
        variance = size / max(size - 1, 1) * (deviations**2).sum() / of.sum() ** 2
        size = min(value * (1 - value) / variance, of.sum()) if variance > 0 else size
    return _Proportion(value, size, deviations, of.max() <= 1)


def wilson(p: float, size: float) -> Estimate:
    """Returns a proportion with its Wilson interval, given the number of samples."""
    centre, width = (
        p + Z**2 / (2 * size),
        Z * math.sqrt(max(p * (1 - p), 0) / size + Z**2 / (4 * size**2)),
    )
    low, high = ((centre + sign * width) / (1 + Z**2 / size) for sign in (-1, 1))
    # at 0 and 1 up to rounding
    return Estimate(p, max(min(float(low), p), 0.0), min(max(float(high), p), 1.0))


def _newcombe(first: _Proportion, second: _Proportion) -> Estimate:
    one, two = wilson(*first[:2]), wilson(*second[:2])
    shared = (first.deviations * second.deviations).sum()
    # Newcombe's continuity correction: n/2 from n times the covariance
    if first.is_binary and shared > 0:
        shared = max(shared - 0.5, 0.0)
    spread = math.sqrt((first.deviations**2).sum() * (second.deviations**2).sum())
    correlation = shared / spread if spread else 0.0

    def margin(up: float, down: float) -> float:
        return math.sqrt(max(up**2 - 2 * correlation * up * down + down**2, 0.0))

    value = two.value - one.value
    low = value - margin(two.value - two.low, one.high - one.value)
    return Estimate(value, low, value + margin(two.high - two.value, one.value - one.low))


class _LeaveOneOut(NamedTuple):
    """A score, its values without each of the samples, [N], and the smallest number of samples
    of a class."""

    score: float
    without: np.ndarray
    least: int


def _leave_one_out(outcome: Outcome) -> _LeaveOneOut:
    scored, of = (np.asarray(part, np.float64).reshape(len(part), -1) for part in outcome[1:])
    if outcome.kind == PRECISION:
        by_class = [_average_precisions(*column) for column in zip(scored.T, of.T, strict=True)]
        score, without = (np.mean(part, axis=0) for part in zip(*by_class, strict=True))
        num_relevant = of.sum(axis=0)
        return _LeaveOneOut(
            float(score), without, int(min(num_relevant.min(), (len(of) - num_relevant).min()))
        )
    present = of.any(axis=0)  # classes with pixels
    scored, of = scored[:, present], of[:, present]
    total, of_total = scored.sum(axis=0), of.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):  # without the only sample of a class
        score, without = (
            (total / of_total).mean(),
            ((total - scored) / (of_total - of)).mean(axis=1),
        )
    if outcome.kind == RMSE:
        score, without = np.sqrt(score), np.sqrt(without)
    return _LeaveOneOut(float(score), without, int((of > 0).sum(axis=0).min()))


def _average_precisions(scores: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the average precision of a class, and without each of the samples, [N], given
    distinct scores [N]."""
    order = np.argsort(-scores)
    label, rank = labels[order], np.arange(1, len(scores) + 1)
    num_relevant, above = label.sum(), label.cumsum()
    precision = above / rank
    score = (precision * label).sum() / max(num_relevant, 1)

    def sum_below(values: np.ndarray) -> np.ndarray:
        return values.sum() - values.cumsum()

    others = np.maximum(rank - 1, 1)
    if_irrelevant = score + sum_below(label * precision / others) / max(num_relevant, 1)
    lost = precision + sum_below(label * (precision - (above - 1) / others))
    if_relevant = (num_relevant * score - lost) / max(num_relevant - 1, 1)
    without = np.empty(len(scores))
    without[order] = np.where(label > 0, if_relevant, if_irrelevant)
    return score, without


def _jackknife_interval(found: _LeaveOneOut, kind: str) -> Estimate:
    """Returns the score with Student's interval around the jackknife's estimate without bias.

    The interval has as many degrees of freedom as samples of equal weight would have if they varied
    like these. It is extended to the score. The limits are NaN if there are too few samples of a
    class, or if the bias is at least the standard error, because the jackknife then removes too
    little of it.
    """
    size = len(found.without)
    parts = size * found.score - (size - 1) * found.without  # Tukey's pseudo-values
    centre = parts.mean()
    squares = (parts - centre) ** 2
    error = math.sqrt(squares.sum() / size / (size - 1)) if size > 1 else 0.0
    if found.least < LEAST or abs(found.score - centre) >= error:
        return Estimate(found.score, math.nan, math.nan)
    half = _student(squares.sum() ** 2 / (squares**2).sum()) * error
    low, high = centre - half, centre + half
    if kind == RMSE:  # on the logarithmic scale
        centre = max(centre, error / 2)
        low, high = centre * math.exp(-half / centre), centre * math.exp(half / centre)
    elif kind in (PRECISION, IOU):
        low, high = _arcsine_limits(centre, half, error / 2)
    return Estimate(found.score, min(low, found.score), max(high, found.score))


def _arcsine_limits(centre: float, half: float, margin: float) -> list[float]:
    """Returns the limits of an interval on the scale arcsin √x, whose centre is at least
    `margin` from 0 and 1."""
    centre = min(max(centre, margin), 1 - margin)
    angle, slope = math.asin(math.sqrt(centre)), 0.5 / math.sqrt(centre * (1 - centre))
    ends = (angle - slope * half, angle + slope * half)
    return [math.sin(min(max(end, 0.0), math.pi / 2)) ** 2 for end in ends]


def _student(freedom: float) -> float:
    """Returns the quantile of Student's t of a two-sided interval (Abramowitz and Stegun, 26.7.5).

    Its error is below 1 % from 2 degrees of freedom on.
    """
    terms = (
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
        (79 * Z**9 + 776 * Z**7 + 1482 * Z**5 - 1920 * Z**3 - 945 * Z) / 92160,
    )
    return Z + sum(term / freedom**power for power, term in enumerate(terms, 1))


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
            names = [
                name.removesuffix(" scored") for name in arrays.files if name.endswith(" scored")
            ]
            return {
                measure: Outcome(
                    kind, arrays[f"{measure} {kind} scored"], arrays[f"{measure} {kind} of"]
                )
                for measure, _, kind in (name.rpartition(" ") for name in names)
            }
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
        # none, or damaged
        return {}
