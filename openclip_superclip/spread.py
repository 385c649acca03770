"""A score over several seeds: mean ± standard deviation."""

import statistics
from typing import NamedTuple


class Spread(NamedTuple):
    """A score of runs that differ by the seed alone: never the best of them."""

    values: list[float]

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def std(self) -> float | None:
        """The standard deviation, None of one run."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + (f" ± {self.std:.1f}" if self.std is not None else "")
