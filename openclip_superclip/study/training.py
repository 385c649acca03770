"""Trains and measures a study: several runs at a time, resumed after an interruption."""

import math
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import torch
from tqdm import tqdm

from ..checkpoints.resume_record import versions_of_run
from ..demo.data import write_training_data
from ..environment import keep_freed_memory
from ..files import json_or_empty, make_folder, write_bytes, write_json, write_text
from ..plans.run import Run
from ..rendering import progress_bar
from ..runs.lock import lock
from ..runs.slurm import find_placement
from .configuration import ConfiguredStudy
from .runs import check_data, check_finished, runs_of
from .study_results import StudyResults, check_measures
from .study_run import StudyRun, measured


def run_study(configured: ConfiguredStudy, jobs: int) -> StudyResults:
    """Trains and measures what is missing, writes the results into the study's folder, and returns
    them.

    `jobs` is the number of runs at a time; 0 trains nothing: InputError if a run is not finished.
    """
    runs = runs_of(configured)
    if jobs:
        check_data(configured.study, runs)
    else:
        check_finished(runs)
    make_folder(configured.out)
    with lock(configured.out / "lock", find_placement()):
        write_data(configured)
        # checks the runs' folders again: another study may have written there since
        runs = runs_of(configured)
        planned_seeds = plan_seeds(configured, runs)
        results = StudyResults(configured.study, records(configured, runs, jobs), planned_seeds)
        write_results(results, configured)
    return results


def plan_seeds(configured: ConfiguredStudy, runs: Sequence[StudyRun]) -> list[int]:
    """Writes into study.json, before the first run, at which numbers of seeds the results are
    read, and returns them.

    Each number counts if another one replaces it after a run is finished, except one seed alone,
    which has no interval. A study of an earlier release was read at the number that it has.
    """
    file = configured.out / "study.json"
    record = json_or_empty(file)
    earlier = []
    if any(run.is_finished for run in runs):
        earlier = record.get("planned_seeds") or [
            len({run["seed"] for run in record.get("runs", ())})
        ]
    study = configured.study
    planned = {number for number in earlier if number > 1} | {study.seeds}
    if max(planned) > 1:
        planned -= {1}
    about = {"question": study.question, "primary": study.primary}
    write_json(file, {**about, **record, "planned_seeds": sorted(planned)})
    return sorted(planned)


def write_data(configured: ConfiguredStudy) -> None:
    """Writes the demo's model and scenes if the study is measured on these."""
    if configured.study.is_of_scenes:
        torch.set_num_threads(1)  # measuring happens in the threads that also wait for the runs
        keep_freed_memory()
        write_training_data(configured.options.scenes)


def records(configured: ConfiguredStudy, runs: Sequence[StudyRun], jobs: int) -> list[dict]:
    """Trains runs, `jobs` at a time, and measures them; without `jobs`, all are finished."""
    results = _train_and_measure(configured, runs, jobs)
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
    must not make the speed negative. The speed does not count the seconds before the first step."""
    if bar.n == bar.initial < trained:  # the first ones
        bar.start_t = time.time()
    bar.initial = min(bar.initial, trained)
    bar.update(trained - bar.n)


def _bar(name: str, runs: Sequence[StudyRun]) -> tqdm:
    """Returns a bar over the samples of runs, with the remaining time at their mean speed."""
    return progress_bar(
        name,
        sum(run.recipe.samples for run in runs),
        initial=sum(run.samples_trained for run in runs),
        unit_scale=True,
        smoothing=0,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} samples, "
        "{elapsed}<{remaining}",
    )


def write_results(results: StudyResults, configured: ConfiguredStudy) -> None:
    """Writes study.json, study.md and study.png."""
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
        "planned_seeds": results.planned_seeds,
        "confidence_level": results.level,
        "versions": versions_of_run(),
        "cpus": os.cpu_count(),
        "differences": results.comparisons(),
        "runs": results.records,
    }
    write_json(out / "study.json", content)
    write_text(out / "study.md", f"{results.tables()}\n")
    write_bytes(out / "study.png", draw_study(results))
