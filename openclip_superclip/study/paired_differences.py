"""Scores over several seeds, and their differences paired by seed, with intervals."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class Spread(tuple[float, ...]):
    """The scores of runs that differ by the seed alone: never only the best of them."""

    @property
    def mean(self) -> float:
        return statistics.mean(self)

    @property
    def std(self) -> float | None:
        """The standard deviation, None of one value."""
        return statistics.stdev(self) if len(self) > 1 else None

    def __str__(self) -> str:
        text = f"{self.mean:.1f}"
        return text if self.std is None else f"{text} ± {self.std:.1f}"


# Pocock (1977): the significance level of each of several looks at equal distances, together 5 %
POCOCK = (0.05, 0.0294, 0.0221, 0.0182, 0.0158)


def confidence_level(num_looks: int) -> float:
    """Returns the level of the intervals of a study whose results are read so many times."""
    if num_looks > len(POCOCK):
        return 1 - 0.05 / num_looks  # Bonferroni's, which is stricter
    return 1 - POCOCK[num_looks - 1]


@dataclass(frozen=True)
class PairedDifference:
    """The differences of two methods' scores, one for each seed that both were trained with."""

    values: Sequence[float]
    # of the mean; None of one seed, and of equal differences that are not zero: few seeds of a
    # coarse measure often agree, and their spread of zero says nothing about the next seed
    interval: tuple[float, float] | None

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def verdict(self) -> str:
        """On which side of zero the interval lies; a single seed shows nothing."""
        low, high = self.interval or (0.0, 0.0)
        if low > 0:
            return "above zero"
        return "below zero" if high < 0 else "not significant"

    def record(self) -> dict:
        return {"mean": self.mean, "interval": self.interval, "values": self.values}

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.mean:+.1f}"
        low, high = self.interval
        return f"{self.mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def paired_difference(
    ours: Mapping[int, float], theirs: Mapping[int, float], level: float = 0.95
) -> PairedDifference:
    """Returns the difference of scores by seed, for the seeds that both have, with the confidence
    interval of Student's paired t-test."""
    from scipy.stats import ttest_rel

    seeds = sorted(ours.keys() & theirs.keys())
    values = [ours[seed] - theirs[seed] for seed in seeds]
    if len(values) < 2 or max(values) - min(values) < 1e-9 < abs(values[0]):
        return PairedDifference(values, None)
    test = ttest_rel([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    low, high = test.confidence_interval(level)
    return PairedDifference(values, (float(low), float(high)))
