"""What a study shows while it trains: samples of all runs, a remaining time that never rises,
and finished scores."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ...runs.progress import STEPS
from .study_run import StudyRun

FIRST_FRACTION = 0.02  # of the samples: before, the speed is not known
SECONDS_BETWEEN_LINES = 10  # without a terminal


class RemainingTime:
    """Estimates the remaining seconds from the mean speed of all runs since the first sample.

    It never rises."""

    def __init__(self, total: int):
        self.total = total
        self.before: int | None = None  # samples of earlier calls of the command
        self.began: float | None = None
        self.seconds: float | None = None

    def update(self, samples: int, now: float) -> float | None:
        """Returns the estimate at a time in seconds; None before the speed is known."""
        if self.before is None:
            self.before = samples
        trained = samples - self.before
        if self.began is None and trained > 0:
            self.began = now
        if trained <= FIRST_FRACTION * (self.total - self.before) or now == self.began:
            return self.seconds
        estimate = (self.total - samples) * (now - self.began) / trained
        self.seconds = estimate if self.seconds is None else min(self.seconds, estimate)
        return self.seconds


class StudyBar:
    """A bar over the samples of a study's runs."""

    def __init__(self, name: str, runs: Sequence[StudyRun]):
        self.runs = runs
        self.remaining = RemainingTime(sum(run.recipe.samples for run in runs))
        self.bar = tqdm(
            total=self.remaining.total,
            desc=name,
            unit_scale=True,
            file=sys.stderr,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} samples, "
            "{elapsed}{postfix}",
        )
        self.last = time.monotonic()

    def show(self, num_measured: int) -> None:
        """Shows what the runs have reached; `num_measured` of them are measured."""
        self.bar.n = max(self.bar.n, sum(map(samples_trained, self.runs)))
        now = time.monotonic()
        seconds = self.remaining.update(self.bar.n, now)
        if self.bar.n >= self.bar.total:
            left = len(self.runs) - num_measured
            text = f"measuring {left} run(s)" if left else "done"
        else:
            text = "starting" if seconds is None else f"{seconds / 60:.0f} min left"
        self.bar.set_postfix_str(text, refresh=False)
        if sys.stderr.isatty() or now - self.last >= SECONDS_BETWEEN_LINES:
            self.last = now
            self.bar.refresh()

    def report(self, run: str, measure: str, score: float) -> None:
        """Prints a finished run's score above the bar."""
        self.bar.write(f"{run}: {measure.replace('_', ' ')} {score:.1f}", file=sys.stderr)


def samples_trained(run: StudyRun) -> int:
    """Returns the number of samples that a run has been trained on."""
    if run.is_finished:
        return run.recipe.samples
    steps = max(map(_completed_steps, run.folder.glob(f"ranks/*/{STEPS}")), default=0)
    return min(steps * run.recipe.global_batch_size, run.recipe.samples)


def _completed_steps(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # it is being written
        return 0
