"""A study from its file to its results."""

import dataclasses
import logging
import os
import platform
from pathlib import Path

from ..atomic_files import make_folder
from ..errors import InputError
from ..running.placement import find_placement
from ..running.run_lock import lock
from ..versions import versions
from .study_file import Study, read_study
from .study_results import StudyResults
from .study_run import PACKAGES
from .study_training import StudyTraining


def run_study(
    name: str,
    out: Path | None,
    seeds: int | None,
    jobs: int,
    device: str,
    data: str | None,
    val_data: str | None,
    set_: dict[str, str],
    runs_in: Path | None = None,
) -> str:
    """Trains and measures what is not there yet, writes the results into `out`, and returns them as text.

    Args:
        name: a study's file or shipped name.
        out: studies/NAME where it is None.
        seeds: the number of paired seeds, where it is not the study's.
        jobs: runs at a time.
        data, val_data: shards in place of the study's; with `val_data` OpenCLIP's own retrieval measures.
        set_: fields of the recipe with their values, of every run.
        runs_in: the folder of the runs, which studies of one recipe may share; OUT/runs where it is None.
    """
    study = read_study(name)
    if seeds is not None:
        study = dataclasses.replace(study, seeds=seeds)
    if val_data is not None:
        study = _on_validation_data(study)
    study.check_set(set_)
    if val_data is not None:
        set_ = {**set_, "flags.val-data": val_data}
    if bool(data) != bool(val_data) and study.measures == "demo" and data:
        raise InputError("--data without --val-data: the demo's scenes would measure what was trained on other data")
    out = out or Path("studies") / study.name
    make_folder(out, "--out")
    with lock(out / "lock", find_placement()):
        if study.measures == "demo":
            _write_demo_data()
        logging.getLogger().setLevel(logging.ERROR)  # OpenCLIP warns that a model to be trained has no weights
        training = StudyTraining(study, out, jobs, device, data, tuple(set_.items()), runs_in)
        records, chosen = training.run()
        results = StudyResults(study, records, chosen)
        results.write(out, _provenance(study, device, set_))
    return f"{results.tables()}\n\n{out}/study.png, study.csv, study.json and {training.runs_in} hold the rest."


def _on_validation_data(study: Study) -> Study:
    """Returns the study measured by OpenCLIP's retrieval among the pairs of --val-data."""
    return dataclasses.replace(study, measures="validation", primary="image_to_text_R@1", choose={})


def _write_demo_data() -> None:
    import torch

    from ..demo.study_data import write_study_data

    torch.set_num_threads(1)  # measuring happens in the threads that also wait for the runs
    write_study_data(Path("demo"))


def _provenance(study: Study, device: str, set_: dict[str, str]) -> dict:
    processor = next(
        (line.partition(":")[2].strip() for line in _cpu_info() if line.startswith("model name")), platform.machine()
    )
    return {
        "study": dataclasses.asdict(study), "device": device, "set": set_, "versions": versions(*PACKAGES),
        "processor": processor, "cpus": os.cpu_count(),
    }  # fmt: skip


def _cpu_info() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
