"""A study from its file to its results."""

import dataclasses
import logging
import os
import platform
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..atomic_files import make_folder, write_text
from ..errors import InputError
from ..running.placement import find_placement
from ..running.run_folder import RunFolder
from ..running.run_lock import lock
from ..running.run_state import read_object
from ..versions import versions
from .dense_measures import DENSE_SCENES
from .study_call import StudyCall, data_of_scenes, place_of_runs
from .study_results import StudyResults
from .study_run import PACKAGES
from .study_training import StudyTraining

RUNS_LIST = "runs.list"  # the folders of the runs, a line each
JOBS = "jobs.json"  # the numbers of the jobs that were submitted last, by the names of the stages


def run_study(call: StudyCall, jobs: int, trains: bool = True) -> StudyResults:
    """Trains and measures what is not there yet, writes the results into the folder, and returns them.

    Args:
        jobs: runs at a time.
        trains: whether runs that are not finished are trained here; InputError names them where they are not.
    """
    if not trains and call.runs_in and not call.runs_in.is_dir():
        raise InputError(f"--runs: there is no folder {call.runs_in}")
    with _locked(call):
        training = prepared_training(call, jobs, trains)
        records, chosen = training.run()
        results = StudyResults(call.study, records, chosen)
        results.write(call.out, _provenance(call))
    return results


def choose_rates(call: StudyCall) -> str:
    """Chooses the learning rates by trials that are finished, and tells of them.

    The recipes of the runs are written into their folders, and these into OUT/runs.list, for jobs to train.
    """
    with _locked(call):
        training = prepared_training(call, 1, trains=False)
        chosen = training.choose()
        runs = training.write_recipes(training.runs(chosen))
        write_text(call.out / RUNS_LIST, "".join(f"{run.folder}\n" for run in runs))
        array = submitted_jobs(call.out).get("runs")
        for task, run in enumerate(runs if array else []):
            RunFolder(run.folder).note_submission(f"{array}_{task}")
    rates = [f"{arm}, {cell}: {lr}" for arm, cells in chosen.items() for cell, lr in cells.items()]
    return f"learning rates: {'; '.join(rates) or 'the recipe holds them'}; {len(runs)} recipes in {training.runs_in}"


@contextmanager
def _locked(call: StudyCall) -> Iterator[None]:
    """Holds the study's folder, and that of its runs, which other studies may share."""
    runs_in, flag = place_of_runs(call.out, call.runs_in)
    make_folder(runs_in, flag)
    make_folder(call.out, "--out")
    with ExitStack() as held:
        held.enter_context(lock(call.out / "lock", find_placement()))
        place = runs_in.resolve()
        held.enter_context(lock(place.with_name(f"{place.name}.lock"), find_placement(), runs_in, flag))
        yield


def submitted_jobs(out: Path) -> dict[str, str]:
    """Returns the numbers of the jobs that were submitted last, by the names of their stages."""
    kept = out / JOBS
    found = read_object(kept)
    if not found and kept.exists():
        raise InputError(f"{kept} is damaged: scancel the study's jobs, which squeue --me shows, and remove the file")
    return found


def prepared_training(call: StudyCall, jobs: int, trains: bool = True) -> StudyTraining:
    """Returns the study's training, the data that it measures on written."""
    if call.study.is_of_scenes:
        _write_demo_data(call)
    if call.study.measures == "dense-scenes":
        from ..demo.dense_scenes import write_dense_scenes

        write_dense_scenes(call.scenes / DENSE_SCENES)
    logging.getLogger().setLevel(logging.ERROR)  # OpenCLIP warns that a model to be trained has no weights
    return new_training(call, jobs, trains)


def new_training(call: StudyCall, jobs: int, trains: bool) -> StudyTraining:
    return StudyTraining(
        call.study, call.out, jobs, call.device, call.data, tuple(call.set.items()), call.runs_in, trains,
        call.settings.arguments(), call.scenes,
    )  # fmt: skip


def _write_demo_data(call: StudyCall) -> None:
    import torch

    from ..demo.training_data import write_training_data

    torch.set_num_threads(1)  # measuring happens in the threads that also wait for the runs
    write_training_data(call.scenes, data_of_scenes(call.study))


def _provenance(call: StudyCall) -> dict:
    processor = next(
        (line.partition(":")[2].strip() for line in _cpu_info() if line.startswith("model name")), platform.machine()
    )
    return {
        "command": shlex.join(["superclip", *call.arguments]),
        "study": dataclasses.asdict(call.study), "device": call.device, "set": dict(call.set),
        "versions": versions(*PACKAGES), "processor": processor, "cpus": os.cpu_count(),
    }  # fmt: skip


def _cpu_info() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
