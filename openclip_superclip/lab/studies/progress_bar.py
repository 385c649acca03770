"""What a study shows while it trains: samples of all runs, the remaining time, and finished
scores."""

import sys
from collections.abc import Sequence

from tqdm import tqdm

from .study_run import StudyRun

SECONDS_BETWEEN_LINES = 10  # without a terminal


class StudyBar:
    """A bar over the samples of a study's runs, with the remaining time at their mean speed."""

    def __init__(self, name: str, runs: Sequence[StudyRun]):
        self.runs = runs
        self.bar = tqdm(
            desc=name,
            total=sum(run.recipe.samples for run in runs),
            initial=sum(map(samples_trained, runs)),
            unit_scale=True,
            smoothing=0,
            miniters=0,
            mininterval=0.5 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} samples, "
            "{elapsed}<{remaining}{postfix}",
        )

    def show(self, num_measured: int) -> None:
        """Shows what the runs have reached; `num_measured` of them are measured."""
        trained = sum(map(samples_trained, self.runs))
        if trained >= self.bar.total:
            left = len(self.runs) - num_measured
            self.bar.set_postfix_str(f"measuring {left} run(s)" if left else "done", refresh=False)
        self.bar.update(max(0, trained - self.bar.n))

    def report(self, run: str, measure: str, score: float) -> None:
        """Prints a finished run's score above the bar."""
        self.bar.write(f"{run}: {measure.replace('_', ' ')} {score:.1f}", file=sys.stderr)


def samples_trained(run: StudyRun) -> int:
    """Returns the number of samples that a run has been trained on."""
    if run.is_finished:
        return run.recipe.samples
    return min(run.state.get("step", 0) * run.recipe.global_batch_size, run.recipe.samples)
