"""Which runs a study has, and what is left of them to train."""

import itertools
import os
import re
from collections.abc import Iterable, Sequence

from ..errors import InputError, listed, refuse
from ..plans.cost import estimate_cost, known_counts
from ..plans.plan_text import duration
from ..plans.recipe_files import read_recipe
from ..plans.run import Run
from ..runs.unreadable import accepted_data
from .configuration import ConfiguredStudy
from .study_file import Study
from .study_run import StudyRun

ADVICE = "give --out another folder"


def runs_of(configured: ConfiguredStudy) -> list[StudyRun]:
    """Returns the runs of a study: seeds outermost, so that the finished ones are always a study of
    fewer seeds.

    InputError for a folder of another run.
    """
    study = configured.study
    runs = [
        _run(configured, arm, cell, seed)
        for seed, cell, arm in itertools.product(range(study.seeds), study.cell_values, study.arms)
    ]
    names = {_without_seed(run.folder.name) for run in runs}
    if len(names) < len(study.cell_values) * len(study.arms):
        raise InputError(
            f"{study.name}: two of its arms or cells would share a folder of {', '.join(names)}: "
            "rename one"
        )
    refuse(
        f"{folder} is not a run of this study: {ADVICE}, or finish a study that an earlier "
        "version has begun with that version"
        for folder in sorted(configured.runs_in.glob("*"))
        if Run.is_in(folder) and _without_seed(folder.name) not in names
    )
    for run in runs:
        _check_folder(run)
    return runs


def _run(configured: ConfiguredStudy, arm: str, cell: object, seed: int) -> StudyRun:
    study = configured.study
    settings = study.settings(arm, cell) | {"seed": str(seed)}
    recipe = read_recipe(study.recipe, settings)
    parts = [arm]
    if cell is not None:
        parts.append(f"{study.cell_field.rpartition('.')[2]}-{cell}")
    parts = [re.sub(r"[^\w.-]+", "-", part)[:60].lower() for part in parts]
    folder = configured.runs_in / f"{'_'.join(parts)}_seed{seed}"
    return StudyRun(configured, arm, cell, seed, settings, recipe, folder)


def _without_seed(name: str) -> str:
    """Returns the name of a run's folder without its seed."""
    return name.rpartition("_seed")[0]


def _check_folder(run: StudyRun) -> None:
    """Raises InputError if the run's folder contains a run with other settings, data or device."""
    folder = run.run_folder
    if folder.checkpoints.exists() and not (folder.path / "recipe.yaml").exists():
        raise InputError(
            f"{folder.path} contains checkpoints of something else than a run of a study: {ADVICE}"
        )
    folder.check_recipe(run.recipe, ADVICE)
    configured = run.configured
    data = configured.data or run.recipe.shards
    folder.check_data(ADVICE, data, configured.options.device)


def unfinished(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """Returns the runs that are not finished."""
    return [run for run in runs if not run.is_finished]


def check_finished(runs: Sequence[StudyRun]) -> None:
    """Raises InputError if runs are not finished."""
    left = unfinished(runs)
    if left:
        names = [f"{run.folder.name} ({run.state.get('state', 'not started')})" for run in left]
        raise InputError(
            f"unfinished runs in {left[0].folder.parent}: {len(left)} of {len(runs)}, "
            f"{listed(names, 3)}; the command that trains the study, or submits it "
            "to SLURM, continues them"
        )


def check_plans(plans: Iterable[Run], *, reads_data: bool) -> None:
    """Prints the warnings of different plans and of their data; InputError for a problem with the
    data, or only with its pattern."""
    different = {}
    for plan in plans:
        long_caption = plan.recipe.config.long_caption_key
        shards = (plan.data, plan.recipe.slices, plan.slice_samples)
        different[shards, long_caption, tuple(plan.warnings)] = plan
    for plan in different.values():
        accepted_data(plan, "study", reads_data=reads_data)


def check_data(study: Study, runs: Sequence[StudyRun]) -> None:
    """Prints the warnings of what is left to train and of its data; InputError if that could not
    be read. The demo's scenes are written later."""
    plans = [run.described_here() for run in unfinished(runs)]
    check_plans(plans, reads_data=not study.is_of_scenes)


def summary(study: Study, runs: Sequence[StudyRun], jobs: int) -> str:
    """Returns how many runs are left to train and how many samples and, of your own data on a CPU,
    how long that takes with so many runs at a time."""
    left = unfinished(runs)
    samples = sum(run.recipe.samples for run in left)
    text = f"{study.name}: runs left to train: {len(left)} of {len(runs)}, {samples:,} samples"
    plans = [run.described() for run in left]
    is_known = not study.is_of_scenes and all(known_counts(plan.recipe) for plan in plans)
    if not left or plans[0].device != "cpu" or not is_known:
        return text
    cores = os.cpu_count() or 1  # of the estimate; a run uses one
    hours = sum(estimate_cost(plan)["hours"] for plan in plans) * cores / min(jobs, cores)
    return f"{text}: {duration(hours)} with --jobs {jobs}"
