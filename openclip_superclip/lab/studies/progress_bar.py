"""What a study shows while it trains: samples of all runs and the remaining time."""

import sys
from collections.abc import Sequence

from tqdm import tqdm

from .study_run import StudyRun

SECONDS_BETWEEN_LINES = 10  # without a terminal


def study_bar(name: str, runs: Sequence[StudyRun]) -> tqdm:
    """Returns a bar over the samples of a study's runs, with the remaining time at their mean
    speed."""
    return tqdm(
        desc=name,
        total=sum(run.recipe.samples for run in runs),
        initial=samples_trained(runs),
        unit_scale=True,
        smoothing=0,
        miniters=0,
        mininterval=0.5 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} samples, "
        "{elapsed}<{remaining}",
    )


def samples_trained(runs: Sequence[StudyRun]) -> int:
    """Returns the number of samples that runs have been trained on."""
    num_samples = 0
    for run in runs:
        most = run.recipe.samples
        steps = run.state.get("step", 0)
        num_samples += most if run.is_finished else min(steps * run.recipe.global_batch_size, most)
    return num_samples
