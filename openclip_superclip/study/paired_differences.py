"""Scores over several seeds, and their differences paired by seed, with intervals."""

import math
import statistics
from collections.abc import Mapping

VERDICTS = ("above zero", "below zero", "not significant")


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


class PairedDifference(Spread):
    """The differences of two methods' scores, one for each seed that both were trained with."""

    @staticmethod
    def by_seed(ours: Mapping[int, float], theirs: Mapping[int, float]) -> "PairedDifference":
        """Returns the differences of scores by seed, for the seeds that both have, in order."""
        seeds = sorted(ours.keys() & theirs.keys())
        return PairedDifference(ours[seed] - theirs[seed] for seed in seeds)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the mean (Student's t over the seeds).

        None of one seed, and of equal differences that are not zero: few seeds of a coarse measure
        often agree, and their spread of zero says nothing about the next seed.
        """
        if self.std is None or self.std < 1e-9 < abs(self.mean):
            return None
        from scipy.stats import t

        half = t.ppf(0.975, len(self) - 1) * self.std / math.sqrt(len(self))
        return self.mean - half, self.mean + half

    @property
    def verdict(self) -> str:
        """One of VERDICTS: on which side of zero the interval lies; a single seed shows nothing."""
        low, high = self.interval or (0.0, 0.0)
        if low > 0:
            return "above zero"
        return "below zero" if high < 0 else "not significant"

    def record(self) -> dict:
        return {"mean": self.mean, "interval": self.interval, "values": self}

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.mean:+.1f}"
        low, high = self.interval
        return f"{self.mean:+.1f} [{low:+.1f}, {high:+.1f}]"
