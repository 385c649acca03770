"""Ranks of scores, and how well a score tells two kinds of pairs apart."""

from collections.abc import Sequence

import numpy as np


def ranks(values: np.ndarray) -> np.ndarray:
    """Returns the rank of each value [N], from 0 up, float64; equal values share the mean of their ranks."""
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right") - 1) / 2


def mean_of_ranks(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the mean of the ranks that several scores [N] give, float64 [N]: they need no common unit."""
    return np.mean([ranks(score) for score in scores], axis=0)


def auroc(scores: np.ndarray, bad: np.ndarray) -> float:
    """Returns how often a bad pair scores below a good one, ties counted half: 1 tells all apart, 0.5 none.

    Args:
        scores: [N], the higher the better.
        bad: bool [N].
    """
    num_bad, num_good = int(bad.sum()), int((~bad).sum())
    return 1 - (ranks(scores)[bad].sum() - num_bad * (num_bad - 1) / 2) / (num_bad * num_good)
