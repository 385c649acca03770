"""Outcomes of test samples, and scores, intervals and differences computed from them.

All numbers of a measure (score, interval, paired difference) are computed from the same outcomes,
so a score cannot be outside its own interval.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from ..files import whole_file

MEAN = "mean"
RECALL = "recall"
PRECISION = "precision"
IOU = "iou"
RMSE = "rmse"
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


# CLIP_benchmark's metrics and the outcomes, by name
Measured = tuple[dict[str, float], dict[str, Outcome]]


def right(hits: np.ndarray) -> Outcome:
    """Returns the outcome of a mean over samples that are right or wrong."""
    return Outcome(MEAN, hits.astype(np.uint8), np.ones(len(hits), np.uint8))


class Estimate(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float  # NaN if there is no interval
    high: float

    def limits(self) -> tuple[float, float] | None:
        """Returns the interval, or None if there is none."""
        return None if math.isnan(self.low) else (self.low, self.high)

    def text(self, format: str) -> str:
        """Returns the value and its interval in percent, or metres as centimetres; the interval is
        [–] if there is none."""
        value, low, high = (f"{100 * number:{format}}" for number in self)
        return f"{value} [{low}, {high}]" if self.limits() else f"{value} [–]"


def estimate(outcome: Outcome) -> Estimate:
    """Returns the score of an outcome with its 95 % interval over the test samples.

    Means and mean recalls have Wilson's score interval, which keeps its coverage near 100 %. Its
    sample size is the effective one (Korn and Graubard, 1998) if a sample has several parts or a
    class weighs more than its samples. Other measures have the jackknife's interval, on a scale
    that stabilises their variance. Its limits are NaN if there are too few samples.
    """
    if outcome.kind in (MEAN, RECALL):
        return _proportion(outcome).estimate
    return _jackknife_interval(_leave_one_out(outcome), outcome.kind)


def difference(first: Outcome, second: Outcome) -> Estimate:
    """Returns the difference `second` - `first` on the same samples, with the paired 95 % interval.

    For means and mean recalls this is Newcombe's hybrid score interval (1998, method 10): the
    Wilson limits of both, combined with the correlation of their samples. Other measures have the
    jackknife's interval.
    """
    if first.kind in (MEAN, RECALL):
        return _newcombe(_proportion(first), _proportion(second))
    before = _leave_one_out(first)
    after = _leave_one_out(second)
    change = _LeaveOneOut(
        after.score - before.score, after.without - before.without, min(before.least, after.least)
    )
    return _jackknife_interval(change, "difference")


def mean_of(parts: Sequence[Estimate]) -> Estimate:
    """Returns the mean of independent estimates; half-widths are combined as root sum of
    squares."""
    values, lows, highs = np.array(parts, dtype=np.float64).T
    value = values.mean()
    below = np.linalg.norm(values - lows) / len(parts)
    above = np.linalg.norm(highs - values) / len(parts)
    return Estimate(value, value - below, value + above)


class _Proportion(NamedTuple):
    """A proportion with its Wilson interval, and each sample's deviation from it."""

    estimate: Estimate
    deviations: np.ndarray
    is_binary: bool  # each sample is right or wrong and weighs the same


def _proportion(outcome: Outcome) -> _Proportion:
    scored = np.asarray(outcome.scored, np.float64)
    of = np.asarray(outcome.of, np.float64)
    if outcome.kind == RECALL:
        _, classes, sizes = np.unique(of, return_inverse=True, return_counts=True)
        weights = 1 / sizes[classes] / len(sizes)
        value = (weights * scored).sum()
        size = len(sizes) ** 2 / (1 / sizes).sum()
        return _Proportion(wilson(value, size), weights * (scored - value), is_binary=False)
    value = scored.sum() / of.sum()
    size = len(of)
    deviations = scored - value * of
    is_binary = of.max() <= 1
    if not is_binary:
        variance = size / max(size - 1, 1) * (deviations**2).sum() / of.sum() ** 2
        if variance > 0:
            size = min(value * (1 - value) / variance, of.sum())
    return _Proportion(wilson(value, size), deviations, is_binary)


def wilson(p: float, size: float) -> Estimate:
    """Returns a proportion with its Wilson interval, given the number of samples."""
    centre = p + Z**2 / (2 * size)
    width = Z * math.sqrt(max(p * (1 - p), 0) / size + Z**2 / (4 * size**2))
    low, high = ((centre + side) / (1 + Z**2 / size) for side in (-width, width))
    # at 0 and 1 up to rounding
    return Estimate(p, max(min(low, p), 0.0), min(max(high, p), 1.0))


def _newcombe(first: _Proportion, second: _Proportion) -> Estimate:
    before = first.estimate
    after = second.estimate
    shared = (first.deviations * second.deviations).sum()
    # Newcombe's continuity correction: n/2 from n times the covariance
    if first.is_binary and shared > 0:
        shared = max(shared - 0.5, 0.0)
    spread = math.sqrt((first.deviations**2).sum() * (second.deviations**2).sum())
    correlation = shared / spread if spread else 0.0

    def margin(up: float, down: float) -> float:
        return math.sqrt(max(up**2 - 2 * correlation * up * down + down**2, 0.0))

    value = after.value - before.value
    low = value - margin(after.value - after.low, before.high - before.value)
    return Estimate(value, low, value + margin(after.high - after.value, before.value - before.low))


class _LeaveOneOut(NamedTuple):
    """A score, its values without each of the samples, [N], and the smallest number of samples
    of a class."""

    score: float
    without: np.ndarray
    least: int


def _leave_one_out(outcome: Outcome) -> _LeaveOneOut:
    num_samples = len(outcome.of)
    scored = np.asarray(outcome.scored, np.float64).reshape(num_samples, -1)
    of = np.asarray(outcome.of, np.float64).reshape(num_samples, -1)
    if outcome.kind == PRECISION:
        by_class = map(_average_precisions, scored.T, of.T)
        scores, without = zip(*by_class, strict=True)
        num_relevant = of.sum(axis=0)
        least = min(num_relevant.min(), (num_samples - num_relevant).min())
        return _LeaveOneOut(np.mean(scores), np.mean(without, axis=0), least)
    present = of.any(axis=0)  # classes with pixels
    scored = scored[:, present]
    of = of[:, present]
    total = scored.sum(axis=0)
    of_total = of.sum(axis=0)
    score = (total / of_total).mean()
    with np.errstate(divide="ignore", invalid="ignore"):  # without the only sample of a class
        without = ((total - scored) / (of_total - of)).mean(axis=1)
    if outcome.kind == RMSE:
        score = np.sqrt(score)
        without = np.sqrt(without)
    return _LeaveOneOut(score, without, (of > 0).sum(axis=0).min())


def _average_precisions(scores: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the average precision of a class, and without each of the samples, [N], given
    distinct scores [N]."""
    order = np.argsort(-scores)
    label = labels[order]
    rank = np.arange(1, len(scores) + 1)
    num_relevant = label.sum()
    above = label.cumsum()
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


def _jackknife_interval(scores: _LeaveOneOut, kind: str) -> Estimate:
    """Returns the score with Student's interval around the jackknife's estimate without bias.

    The interval has as many degrees of freedom as samples of equal weight would have if they varied
    like these. It is extended to the score. The limits are NaN if there are too few samples of a
    class, or if the bias is at least the standard error, because the jackknife then removes too
    little of it.
    """
    size = len(scores.without)
    values = size * scores.score - (size - 1) * scores.without  # Tukey's pseudo-values
    centre = values.mean()
    squares = (values - centre) ** 2
    error = math.sqrt(squares.sum() / size / (size - 1)) if size > 1 else 0.0
    if scores.least < LEAST or abs(scores.score - centre) >= error:
        return Estimate(scores.score, math.nan, math.nan)
    from scipy.special import stdtrit  # which the extra [eval] installs

    freedom = squares.sum() ** 2 / (squares**2).sum()
    half = stdtrit(freedom, (1 + CONFIDENCE) / 2) * error
    low = centre - half
    high = centre + half
    if kind == RMSE:  # on the logarithmic scale
        centre = max(centre, error / 2)
        low = centre * math.exp(-half / centre)
        high = centre * math.exp(half / centre)
    elif kind in (PRECISION, IOU):
        low, high = _arcsine_limits(centre, half, error / 2)
    return Estimate(scores.score, min(low, scores.score), max(high, scores.score))


def _arcsine_limits(centre: float, half: float, margin: float) -> list[float]:
    """Returns the limits of an interval on the scale arcsin √x, whose centre is at least
    `margin` from 0 and 1."""
    centre = min(max(centre, margin), 1 - margin)
    angle = math.asin(math.sqrt(centre))
    reach = half * 0.5 / math.sqrt(centre * (1 - centre))
    ends = (max(angle - reach, 0.0), min(angle + reach, math.pi / 2))
    return [math.sin(end) ** 2 for end in ends]


def write_outcomes(file: Path, outcomes: dict[str, Outcome]) -> None:
    """Writes outcomes by measure."""
    arrays = {}
    for measure, outcome in outcomes.items():
        arrays[f"{measure} {outcome.kind} scored"] = outcome.scored
        arrays[f"{measure} {outcome.kind} of"] = outcome.of
    with whole_file(file) as opened:
        np.savez_compressed(opened, **arrays)


def read_outcomes(file: Path) -> dict[str, Outcome]:
    """Returns outcomes by measure, {} if the file cannot be read."""
    outcomes = {}
    try:
        with np.load(file) as arrays:
            for name in arrays.files:
                measure, kind, part = name.rsplit(" ", 2)
                if part == "scored":
                    outcomes[measure] = Outcome(kind, arrays[name], arrays[f"{measure} {kind} of"])
    except Exception:  # there is no file, or a damaged one, which can raise anything
        return {}
    return outcomes
