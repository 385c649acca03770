"""A study as the command configures it: its seeds and data, its folders, the settings of its
runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..data.tar_shards import is_streamed
from ..demo.data import model_of, shards_of
from ..errors import InputError, refuse
from ..files import check_results
from ..plans.plan import settings_of_table
from ..plans.recipe import VAL_DATA
from ..plans.run import DEFAULTS, Settings
from .study_file import Study, problems, read_study

RESULTS = ("study.json", "study.md", "study.png")
DEMO = Path("demo")  # the folder in which the shipped recipes expect the demo's model and scenes


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """The options of `superclip study`."""

    study: str  # a file or a shipped name
    device: str | None  # None: that of finished runs
    out: Path | None = None  # runs/studies/NAME
    seeds: int | None = None  # the study's
    data: str | None = None  # shards or a table instead of the recipe's
    val_data: str | None = None
    set: Mapping[str, str] = field(default_factory=dict)  # fields of the recipe with their values
    scenes: Path = DEMO  # the folder for the demo's model and scenes
    settings: Settings = DEFAULTS  # of every `superclip run`
    command: str = ""  # the call, for study.json


@dataclass(frozen=True)
class ConfiguredStudy:
    """A study with the options of the command, and what all of its runs have in common."""

    study: Study
    out: Path
    data: str | None  # of the runs, instead of the recipe's
    options: StudyOptions

    @property
    def runs_in(self) -> Path:
        """The folder of the runs."""
        return self.out / "runs"

    def streams(self) -> list[str]:
        """Returns the options of `superclip run` with the command's URLs and commands."""
        options = []
        if is_streamed(self.data):
            options += ["--data", self.data]
        name = f"flags.{VAL_DATA}"
        val_data = self.study.overrides.get(name)
        if is_streamed(val_data):
            options += ["--set", f"{name}={val_data}"]
        return options


def configure(options: StudyOptions) -> ConfiguredStudy:
    """Returns the study of the options; InputError if something cannot be trained or measured."""
    study = read_study(options.study)
    out = options.out or Path("runs/studies", study.name)
    check_results(out, RESULTS, "primary")
    if study.is_of_scenes and (options.data or options.val_data):
        raise InputError(
            f"--data, --val-data: {study.name} trains and evaluates on the demo's scenes; "
            "superclip study own_data takes your own data"
        )
    study = _with_options(study, options)
    _check_measures(study)
    data = options.data
    if options.scenes != DEMO:
        study = replace(study, overrides=study.overrides | {"model": model_of(options.scenes)})
        data = shards_of(options.scenes)
    return ConfiguredStudy(study, out, data, options)


def _with_options(study: Study, options: StudyOptions) -> Study:
    """Returns the study with the options' seeds, fields and validation data."""
    if options.seeds is not None:
        study = replace(study, seeds=options.seeds)
        refuse(f"--seeds: {problem}" for problem in problems(study))
    study = replace(study, overrides=dict(options.set))
    study.check_overrides()
    list(study.recipes())  # InputError if one is impossible
    overrides = study.overrides | settings_of_table(
        study.recipe, study.first_settings, options.data
    )
    if options.val_data is not None:
        overrides[f"flags.{VAL_DATA}"] = options.val_data
    return replace(study, overrides=overrides)


def _check_measures(study: Study) -> None:
    """Raises InputError if the runs could not be measured."""
    if study.is_of_scenes:
        return
    flag = "val-data"
    option = "a table as --data, or with --val-data"
    if study.primary.startswith("imagenet"):
        flag = "imagenet-val"
        option = "--set flags.imagenet-val=FOLDER"
    if not study.first_recipe.flags.get(flag):
        raise InputError(
            f"the study's primary measure is {study.primary}, which training measures with {option}"
        )
