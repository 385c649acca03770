"""Trains and measures a study: several runs at a time, resumed after an interruption."""

import math
import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import torch
from tqdm import tqdm

from ..checkpoints.resume import versions_of_run
from ..demo.data import write_training_data
from ..environment import keep_freed_memory, processor
from ..files import make_folder, write_bytes, write_json, write_text
from ..plans.run import Run
from ..runs.lock import lock
from ..runs.slurm import find_placement
from .configuration import ConfiguredStudy
from .learning_rates import Rates, write_best_rates
from .measure_run import measured
from .runs import StudyRuns, by_folder, check_data, check_finished
from .study_results import StudyResults, check_measures
from .study_run import StudyRun

SECONDS_BETWEEN_LINES = 10  # of the progress bar, without a terminal


def run_study(configured: ConfiguredStudy, jobs: int) -> StudyResults:
    """Trains and measures what is missing, writes the results into the study's folder, and returns
    them.

    `jobs` is the number of runs at a time; 0 trains nothing: InputError if a run is not finished.
    """
    runs = StudyRuns(configured)
    if jobs:
        check_data(runs)
    else:
        check_finished(runs.trials() or runs.of_results())
    make_folder(configured.out)
    make_folder(configured.runs_in, "--runs")
    placement = find_placement()
    folder = configured.runs_in.resolve()
    with (  # other studies may share the folder of the runs
        lock(configured.out / "lock", placement),
        lock(folder.with_name(f"{folder.name}.lock"), placement, configured.runs_in, "--runs"),
    ):
        write_data(configured)
        rates = tune(configured, jobs)
        # checks the runs' folders again: another study may have written there since
        runs = StudyRuns(configured).of_results()
        results = StudyResults(configured.study, records(configured, runs, jobs))
        write_results(results, rates, configured)
    return results


def write_data(configured: ConfiguredStudy) -> None:
    """Writes the demo's model and scenes if the study is measured on these."""
    if configured.study.is_of_scenes:
        torch.set_num_threads(1)  # measuring happens in the threads that also wait for the runs
        keep_freed_memory()
        write_training_data(configured.options.scenes)


def tune(configured: ConfiguredStudy, jobs: int) -> Rates:
    """Returns the best learning rates, after training and measuring the trials; {} if none is
    tuned."""
    trials = StudyRuns(configured).trials()
    if not trials:
        return {}
    return write_best_rates(configured.study, records(configured, trials, jobs), configured.out)


def records(configured: ConfiguredStudy, runs: Sequence[StudyRun], jobs: int) -> list[dict]:
    """Trains runs, `jobs` at a time, and measures them; equal ones once. If `jobs` is 0, all must
    be finished."""
    if not jobs:
        check_finished(runs)
    results = _train_and_measure(configured, by_folder(runs), jobs)
    found = [
        {"arm": run.arm, "cell": run.cell, "seed": run.seed, "set": run.set}
        | results[run.folder.name]
        for run in runs
    ]
    check_measures(configured.study, found)
    return found


def _train_and_measure(
    configured: ConfiguredStudy, runs: Sequence[StudyRun], jobs: int
) -> dict[str, dict]:
    """Returns what was measured of each run by its name, under one bar of all their samples."""
    primary = configured.study.primary
    title = primary.replace("_", " ")
    stop = threading.Event()
    results = {}

    def finish(run: StudyRun) -> dict:
        if jobs:
            run.train(stop)
        return measured(run)

    with _bar(configured.study.name, runs) as bar, ThreadPoolExecutor(jobs or 1) as pool:
        pending = {pool.submit(finish, run) for run in runs}
        try:
            while pending:
                done, pending = wait(pending, timeout=1, return_when=FIRST_EXCEPTION)
                for future in done:
                    record = future.result()
                    name = record["run"]
                    results[name] = record
                    score = record["measures"].get(primary, math.nan)
                    bar.write(f"{name}: {title} {score:.1f}", sys.stderr)
                show_progress(bar, sum(run.samples_trained for run in runs))
        except BaseException:
            stop.set()  # the runs end in order, and the same command resumes them
            pool.shutdown(cancel_futures=True)
            raise
    return results


def show_progress(bar: tqdm, trained: int) -> None:
    """Shows how many samples are trained; a resumed run repeats those after its checkpoint, which
    must not make the speed negative."""
    bar.initial = min(bar.initial, trained)
    bar.update(trained - bar.n)


def _bar(name: str, runs: Sequence[StudyRun]) -> tqdm:
    """Returns a bar over the samples of runs, with the remaining time at their mean speed."""
    return tqdm(
        desc=name,
        total=sum(run.recipe.samples for run in runs),
        initial=sum(run.samples_trained for run in runs),
        unit_scale=True,
        smoothing=0,
        miniters=0,
        mininterval=0.5 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} samples, "
        "{elapsed}<{remaining}",
    )


def write_results(results: StudyResults, rates: Rates, configured: ConfiguredStudy) -> None:
    """Writes study.json, study.csv (a row for each run), study.md and study.png."""
    from .figures import draw_study

    study = results.study
    out = configured.out
    # a call that only reports has neither the device nor the settings of the runs
    trained = Run.find(configured.runs_in / results.records[0]["run"]) or configured.options
    content = {
        "question": study.question,
        "primary": study.primary,
        "command": configured.options.command,
        "study": study.as_dict(),
        "device": trained.device,
        "settings": vars(trained.settings),
        "set": study.overrides,
        "versions": versions_of_run(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "chosen": rates,
        **results.comparisons(),
        "runs": results.records,
    }
    write_json(out / "study.json", content)
    write_text(out / "study.csv", results.csv())
    write_text(out / "study.md", results.tables() + "\n")
    write_bytes(out / "study.png", draw_study(results))
