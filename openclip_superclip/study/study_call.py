"""A study as a command asks for it: checked whole before anything is written."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from ..demo.training_data import SCENES, TRAINING_DATA, TrainingData
from ..errors import InputError
from ..optional_dependencies import check_clip_benchmark, check_torchmetrics
from ..planning.plan import make_plan
from ..planning.recipe_file import read_recipe
from ..planning.table_data import check_validation, of_table
from ..running.run_settings import USUAL, RunSettings
from ..running.staging import check_stage
from .study_file import Study, check_seeds, read_study

DEMO = Path("demo")  # where the shipped recipes look for the demo's model and scenes
MEASURED_WITH = {"imagenet-zeroshot-val-top1": "imagenet-val"}  # OpenCLIP's flag; for the others val-data


@dataclasses.dataclass(frozen=True)
class StudyCall:
    """A study, its folder, and what all of its runs are given."""

    study: Study
    out: Path
    runs_in: Path | None  # the folder of the runs, which studies of one recipe may share; OUT/runs where it is None
    device: str
    data: str | None  # shards in place of the recipe's
    set: Mapping[str, str]  # fields of the recipe with their values
    arguments: tuple[str, ...]  # of `superclip study`, which make the same call again
    scenes: Path = DEMO  # the folder that the demo's model and scenes are written into
    settings: RunSettings = USUAL  # of every `superclip run`


def study_call(
    name: str,
    out: Path | None,
    seeds: int | None,
    device: str,
    data: str | None,
    val_data: str | None,
    set_: Mapping[str, str],
    runs_in: Path | None = None,
    scenes: Path = DEMO,
    settings: RunSettings = USUAL,
) -> StudyCall:
    """Returns the call; InputError for what cannot be trained or measured.

    Args:
        name: a study's file or shipped name.
        out: studies/NAME where it is None.
        seeds: the number of paired seeds, where it is not the study's.
        data, val_data: shards in place of the study's; with `val_data` OpenCLIP's own retrieval measures.
        set_: fields of the recipe with their values, of every run.
        runs_in: the folder of the runs, which studies of one recipe may share; OUT/runs where it is None.
        scenes: the folder that the demo's model and scenes are written into.
        settings: of every `superclip run`.
    """
    study = read_study(name)
    arguments = {"--device": device, "--seeds": seeds, "--data": data, "--val-data": val_data, "--runs": runs_in}
    given = [part for flag, value in arguments.items() if value is not None for part in (flag, str(value))]
    given += [part for field, value in set_.items() for part in ("--set", f"{field}={value}")]
    out = out or Path("studies") / study.name
    if seeds is not None:
        study = dataclasses.replace(study, seeds=seeds)
        check_seeds(study, "--seeds: first_seed")
    if val_data is not None:
        study = _on_validation_data(study)
    study.check_set(set_)
    set_ = {**set_, **of_table(study.recipe, _of_first(study, set_), data)}
    if val_data is not None:
        set_ = {**set_, "flags.val-data": val_data}
    if bool(data) != bool(val_data) and study.is_of_scenes and data:
        raise InputError("--data without --val-data: the demo's scenes would measure what was trained on other data")
    if study.measures == "dense-scenes":
        check_torchmetrics("a study of dense-scenes")  # whose extra brings what evaluates, too
        check_clip_benchmark("a study of dense-scenes")
    if study.measures == "validation":
        _check_measured(study, set_)
        _check_tables(study, device, data, set_)
    if settings.stage:
        arm, cell = next(iter(study.arms)), study.cell_values[0]
        check_stage(make_plan(read_recipe(study.recipe, study.settings(arm, cell, set_)), data=data, device=device))
    if scenes != DEMO:
        written = data_of_scenes(study)
        set_ = {**set_, "model": f"local-dir:{scenes / written.model}"}
        data = f"{scenes / written.shards}"
    again = ("study", name, "--out", str(out), *given)
    return StudyCall(study, out, runs_in, device, data, set_, again, scenes, settings)


def place_of_runs(out: Path, runs_in: Path | None) -> tuple[Path, str]:
    """Returns the folder of a study's runs and the flag that says where it is."""
    return (out / "runs", "--out") if runs_in is None else (runs_in, "--runs")


def data_of_scenes(study: Study) -> TrainingData:
    """Returns which of the demo's models and shards a study's runs are given."""
    recipe = read_recipe(study.recipe, _of_first(study))
    found = [data for data in TRAINING_DATA if recipe.shards == f"{DEMO / data.shards}"]
    return next((data for data in found if recipe.model == f"local-dir:{DEMO / data.model}"), (*found, SCENES)[0])


def _of_first(study: Study, set_: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Returns the fields of the first arm's runs: of some methods a recipe needs them to be one."""
    return study.settings(next(iter(study.arms)), study.cell_values[0], set_)


def _on_validation_data(study: Study) -> Study:
    """Returns the study measured by OpenCLIP's retrieval among the pairs of --val-data."""
    if study.measures == "validation":
        return study
    return dataclasses.replace(study, measures="validation", primary="image_to_text_R@1", choose={})


def _check_tables(study: Study, device: str, data: str | None, set_: Mapping[str, str]) -> None:
    """Raises InputError where a run could not be trained on its table, or measured on its validation data."""
    for arm in study.arms:
        for cell in study.cell_values:
            plan = make_plan(read_recipe(study.recipe, study.settings(arm, cell, set_)), data=data, device=device)
            if plan.is_table:
                plan.check_data()
            else:
                check_validation(plan.recipe)


def _check_measured(study: Study, set_: Mapping[str, str]) -> None:
    """Raises InputError where the training would not measure the study's primary measure."""
    flag = MEASURED_WITH.get(study.primary, "val-data")
    recipe = read_recipe(study.recipe, _of_first(study, set_))
    if not recipe.flags.get(flag):
        given = "--val-data SHARDS" if flag == "val-data" else f"--set flags.{flag}=FOLDER"
        raise InputError(f"the study's primary measure is {study.primary}, which the training takes with {given}")
