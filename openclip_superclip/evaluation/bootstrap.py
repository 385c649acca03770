"""How much of a score is the luck of its test samples: the bootstrap, of one model or of two on the same samples."""

import zlib

import numpy as np
from scipy.stats import binomtest

from .outcomes import IOU, MEAN, PRECISION, RECALL, RMSE, Outcome

RESAMPLES = 1000
CONFIDENCE = 0.95


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


SCORES = {MEAN: _means, RECALL: _recalls, PRECISION: _precisions, IOU: _overlaps, RMSE: _errors}
