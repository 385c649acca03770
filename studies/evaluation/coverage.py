"""Coverage of the intervals of mAP, mIoU and RMSE on simulated data: `python
docs/evaluation/coverage.py`."""

import csv
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from openclip_superclip.evaluation.intervals import (
    IOU,
    PRECISION,
    RMSE,
    Outcome,
    difference,
    estimate,
)

NUM_SIMULATED = 1000  # data sets per row of the table
FEWEST = 100  # intervals of which the coverage is given
SIZES = (100, 400, 2000)  # images
LARGE = 400_000  # images of a data set whose score is the true one
COLUMNS = (
    "measure",
    "images",
    "data",
    "true score",
    "with an interval, %",
    "coverage, %",
    "of a difference, %",
)


class Data(NamedTuple):
    """A kind of data: `draw(rng, n)` returns the outcomes of two models on the same n images."""

    kind: str
    name: str
    draw: Callable[[np.random.Generator, int], tuple[Outcome, Outcome]]


def kinds() -> Iterator[Data]:
    """Yields data with frequent and rare classes, easy and hard ones, and with few and many
    large errors."""
    for classes, frequency, separation in itertools.product((1, 20), (0.3, 0.05), (1.0, 2.5)):
        name = f"{classes} classes in {frequency:.0%} of the images, d' = {separation}"
        yield Data(PRECISION, name, _with(rankings, classes, frequency, separation))
    for classes, frequency, share in itertools.product((5, 20), (0.5, 0.05), (0.5, 0.85)):
        name = f"{classes} classes in {frequency:.0%} of the images, {share:.0%} found"
        yield Data(IOU, name, _with(masks, classes, frequency, share))
    for spread in (0.5, 1.0):
        yield Data(RMSE, f"squared errors lognormal, σ = {spread}", _with(depths, spread))


def _with(draw: Callable, *arguments) -> Callable:
    return lambda rng, size: draw(rng, size, *arguments)


def rankings(
    rng, size: int, classes: int, frequency: float, separation: float
) -> tuple[Outcome, Outcome]:
    """Normal scores that are correlated between classes and models."""
    labels = rng.random((size, classes)) < frequency
    shared = rng.normal(size=(size, 1)) + rng.normal(size=(size, classes))

    def scores() -> np.ndarray:
        return (shared + rng.normal(size=(size, classes))) / np.sqrt(3) + separation * labels

    return Outcome(PRECISION, scores(), labels), Outcome(PRECISION, scores(), labels)


def masks(rng, size: int, classes: int, frequency: float, share: float) -> tuple[Outcome, Outcome]:
    """Lognormal areas, of which the models find beta-distributed fractions beside some wrong
    pixels."""
    area = rng.lognormal(6, 1, (size, classes)) * (rng.random((size, classes)) < frequency)
    easy = rng.beta(8 * share, 8 * (1 - share), (size, classes))

    def overlaps() -> Outcome:
        found = area * (easy + rng.beta(8 * share, 8 * (1 - share), (size, classes))) / 2
        wrong = rng.lognormal(4, 1, (size, classes)) * (
            rng.random((size, classes)) < 0.3 * frequency
        )
        return Outcome(IOU, found, area + wrong)

    return overlaps(), overlaps()


def depths(rng, size: int, spread: float) -> tuple[Outcome, Outcome]:
    """Lognormal squared errors of images that have 1 to 1,000 pixels with a depth."""
    pixels, shared = rng.integers(1, 1001, size), rng.normal(size=size)

    def errors() -> Outcome:
        logarithm = spread * (shared + rng.normal(size=size)) / np.sqrt(2)
        return Outcome(RMSE, pixels * np.exp(logarithm), pixels)

    return errors(), errors()


def coverage(
    data: Data, size: int, true_score: float, num_simulated: int, seed: int = 0
) -> tuple[float, float, float]:
    """Returns the fraction of data sets with an interval, and the coverage of these and of
    paired differences."""
    rng = np.random.default_rng(seed)
    scores, differences = [], []
    for _ in range(num_simulated):
        first, second = data.draw(rng, size)
        for intervals, found, truth in (
            (scores, estimate(first), true_score),
            (differences, difference(first, second), 0.0),
        ):
            if found.limits() is not None:
                intervals.append(found.low <= truth <= found.high)
    covered = (
        np.mean(part) if len(part) >= min(FEWEST, num_simulated) else np.nan
        for part in (scores, differences)
    )
    return len(scores) / num_simulated, *covered


def true_score(data: Data) -> float:
    """Returns the score of a large data set."""
    return estimate(data.draw(np.random.default_rng(1), LARGE)[0]).value


def main() -> None:
    """Writes coverage.csv beside this file."""
    with open(Path(__file__).with_suffix(".csv"), "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for data in kinds():
            truth = true_score(data)
            for size in SIZES:
                percent = [
                    f"{100 * value:.1f}" for value in coverage(data, size, truth, NUM_SIMULATED)
                ]
                writer.writerow([data.kind, size, data.name, round(truth, 3), *percent])
                print(data.kind, size, data.name, *percent, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
