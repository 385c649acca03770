"""Which runs a study has, and what is left of them to train."""

import itertools
from collections.abc import Iterable, Sequence

from ..checkpoints.starting_weights import is_unchecked
from ..errors import InputError, listed
from ..method.model import trains_only_head
from ..openclip.factory import model_without_values
from ..openclip.train import check_command
from ..plans.recipe_files import read_recipe
from ..plans.run import Run
from ..runs.unreadable import accepted_data
from .configuration import ConfiguredStudy
from .learning_rates import rate_of, read_rates, tuned_arms
from .study_run import StudyRun, named_fields, run_name


class StudyRuns:
    """The runs of a study, and the trials that tune its learning rates.

    A run's folder is named after the fields in which its recipe differs from the study's, so that
    studies of one recipe share runs. InputError for a folder that has, or would have, another run.
    """

    def __init__(self, configured: ConfiguredStudy):
        self.configured = configured
        self._fields: dict[str, dict] = {}  # of the recipes, by the name of the run

    def of_results(self) -> list[StudyRun]:
        """Returns the runs with the learning rates that have been tuned so far: seeds outermost,
        so that the finished ones are always a study of fewer seeds."""
        study = self.configured.study
        rates = read_rates(study, self.configured.out)
        return [
            self._run(arm, cell, seed, rate_of(study, arm, cell, rates))
            for seed, cell, arm in itertools.product(
                study.result_seeds, study.cell_values, study.arms
            )
        ]

    def trials(self) -> list[StudyRun]:
        """Returns the runs that tune the learning rates."""
        study = self.configured.study
        return [
            self._run(arm, cell, seed, str(rate), "tune")
            for seed, cell, arm, rate in itertools.product(
                study.tuning_seeds, study.cell_values, tuned_arms(study), study.choose.get("lr", [])
            )
        ]

    def _run(self, arm: str, cell, seed: int, rate: str | None, split: str = "test") -> StudyRun:
        study = self.configured.study
        own_seed = {"seed": str(seed)}
        settings = study.settings(arm, cell) | own_seed
        if rate:
            settings["lr"] = rate
        recipe = read_recipe(study.recipe, settings)
        common = read_recipe(study.recipe, study.overrides | own_seed)
        is_common = {name: settings[name] == value for name, value in study.fields_of_all.items()}
        name = run_name(recipe, common, is_common)
        folder = self.configured.runs_in / name
        run = StudyRun(self.configured, arm, cell, seed, settings, recipe, folder, split)
        fields = named_fields(recipe)
        if name not in self._fields:
            self._fields[name] = fields
            self._check_folder(run)
        elif self._fields[name] != fields:
            raise InputError(
                f"arms: {arm} and another arm would share the folder {name}, but their recipes "
                "differ: rename the file, or change the value"
            )
        return run

    def _check_folder(self, run: StudyRun) -> None:
        """Raises InputError if the run's folder contains a run with other settings, data or
        device."""
        folder = run.run_folder
        advice = "give --runs another folder"
        if folder.checkpoints.exists() and not (folder.path / "recipe.yaml").exists():
            raise InputError(
                f"{folder.path} contains checkpoints of something else than a run of a study: "
                f"{advice}"
            )
        folder.check_recipe(run.recipe, advice)
        device = self.configured.options.device
        folder.check_data(advice, self.configured.data or run.recipe.shards, device)


def by_folder(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """Returns the runs, those that share a folder once."""
    return list({run.folder: run for run in runs}.values())


def unfinished(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """Returns the runs that are not finished, equal ones once."""
    return [run for run in by_folder(runs) if not run.is_finished]


def check_finished(runs: Sequence[StudyRun]) -> None:
    """Raises InputError if runs are not finished."""
    left = unfinished(runs)
    if left:
        names = [f"{run.folder.name} ({run.state.get('state', 'not started')})" for run in left]
        raise InputError(
            f"{len(left)} of {len(by_folder(runs))} runs in {left[0].folder.parent} are not "
            f"finished: {listed(names, 3)}; the command that trains the study, or submits it "
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


def check_data(runs: StudyRuns) -> None:
    """Prints the warnings of what is left to train and of its data; InputError if that could not
    be read. The demo's scenes are written later."""
    left = unfinished([*runs.trials(), *runs.of_results()])
    is_of_scenes = runs.configured.study.is_of_scenes
    check_plans([run.described() for run in left], reads_data=not is_of_scenes)


def check_arms(runs: StudyRuns) -> None:
    """Raises InputError for an arm whose class loss would train only its head."""
    study = runs.configured.study
    for run in runs.of_results():
        is_first = run.seed == study.first_seed
        if study.is_of_scenes or not (is_first and run.recipe.method.startswith("super")):
            continue
        options = check_command(run.described().openclip_arguments())
        if not is_unchecked(options) and trains_only_head(model_without_values(options)):
            raise InputError(
                f"arm '{run.arm}': its image tower is frozen, so the class loss trains only "
                "its head: its towers would be those of a training without the class loss; "
                "train the image tower, too, or leave the arm out"
            )


def summary(runs: StudyRuns) -> str:
    """Returns how many runs a study trains and how many samples, without training or writing
    anything."""
    check_data(runs)
    study = runs.configured.study
    lines = [f"{study.name}: {study.question}"]
    for kind, group in (("trials", runs.trials()), ("runs", runs.of_results())):
        if group:
            left = unfinished(group)
            samples = sum(run.recipe.samples for run in left)
            lines.append(
                f"{kind}: {len(by_folder(group))}, of which {len(left)} are left to train: "
                f"{samples:,} samples"
            )
    return "\n".join(lines)
