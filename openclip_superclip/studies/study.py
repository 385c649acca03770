"""A study's file: the runs that answer a question, and the primary measure, which is named before the first run."""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

from ..demo import natural
from ..demo.data import SCENES, TRAINING_DATA, TrainingData
from ..environment import require
from ..errors import InputError
from ..files import shipped_folder
from ..rules import Rule, check
from ..runs.plan import make_run, settings_of_table
from ..runs.recipe import WORDS, Recipe, read_recipe, read_yaml
from ..runs.run import DEFAULTS, Settings
from ..runs.stage import check_stage

TUNING_SEEDS = 1000  # the first seed of the trials that tune learning rates: the seeds of results are below it
LIKE = "like"  # in an arm: another arm, whose fields it takes, the tuned learning rate among them
DEMO = Path("demo")  # where the shipped recipes expect the demo's model and scenes
OF_SCENES = ("zero_shot", "image_to_text_R@1", "text_to_image_R@1", "tagging", "linear_probe")
MEASURES = {  # by what measures a run: its measures
    "demo": OF_SCENES,
    "unseen-drawings": OF_SCENES,  # on scenes drawn by a designer that no training shows
    "second-draw": OF_SCENES,  # on scenes of another 100 objects, which its training shows too
    "natural": natural.MEASURES,  # on the data set `natural`, another one for each seed
    "dense-scenes": ("mIoU", "depth_RMSE"),  # on the scenes' pixels, by `superclip evaluate --suite dense`
    "validation": ("image_to_text_R@1", "text_to_image_R@1", "imagenet-zeroshot-val-top1"),  # OpenCLIP's, --val-data
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Arms are compared with the first, or as `compare` says, at equal seeds; cells are values of one more field."""

    question: str
    primary: str  # the measure that answers it
    recipe: str  # a file or a shipped name; what all runs have in common
    arms: dict[str, dict]  # by name: fields of the recipe with their values, as --set takes them
    seeds: int  # how many, the same for every arm
    first_seed: int = 0
    measures: str = "demo"  # one of MEASURES
    set: dict = dataclasses.field(default_factory=dict)  # fields of the recipe with their values, of every run
    cells: dict[str, list | dict] = dataclasses.field(default_factory=dict)  # one field: its values, or a mapping of
    # more fields for each value
    choose: dict = dataclasses.field(default_factory=dict)  # lr: values; seeds: the number of trials of each
    compare: list = dataclasses.field(default_factory=list)  # [arm, baseline], several
    name: str = ""  # of the file

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The comparisons: an arm and its baseline."""
        first, *others = self.arms
        return [tuple(pair) for pair in self.compare] or [(arm, first) for arm in others]

    @property
    def is_of_scenes(self) -> bool:
        """Whether it is measured on the demo's scenes."""
        return self.measures != "validation"

    @property
    def tuning_measures(self) -> str:
        """What measures the trials, which must not see the unseen drawings."""
        return "demo" if self.measures == "unseen-drawings" else self.measures

    @property
    def tuned_arms(self) -> list[str]:
        """The arms with a tuned learning rate of their own."""
        return [arm for arm, values in self.arms.items() if self.choose and LIKE not in values and "lr" not in values]

    @property
    def cell_field(self) -> str | None:
        return next(iter(self.cells), None)

    @property
    def cell_values(self) -> list:
        """The values of the cells' field; [None] without cells."""
        return list(self.cells[self.cell_field]) if self.cells else [None]

    def fields_of_cell(self, cell) -> dict[str, str]:
        """Returns the fields that a cell sets in addition to its own."""
        values = self.cells.get(self.cell_field)
        return _texts(values[cell]) if isinstance(values, dict) else {}

    def settings(self, arm: str, cell=None, of_all: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
        """Returns the values of --set for the runs of an arm in a cell, `of_all` being those of every run.

        An arm that is like another has that one's fields first. Samples in percent are whole steps, rounded up.
        """
        own = _texts(self.arms[arm])
        other = own.pop(LIKE, None)
        found = self.settings(other, None, of_all) if other else _texts(self.set) | dict(of_all)
        if cell is not None:
            found |= _texts({self.cell_field: cell}) | self.fields_of_cell(cell)
        if own.get("samples", "").endswith("%"):
            recipe = read_recipe(self.recipe, found)
            fraction = float(own["samples"].removesuffix("%")) / 100
            steps = math.ceil(round(recipe.samples * fraction / recipe.global_batch_size, 6))
            own["samples"] = str(steps * recipe.global_batch_size)
        return found | own

    def first_recipe(self, of_all: Mapping[str, str] = MappingProxyType({})) -> Recipe:
        """Returns the recipe of the first arm's runs in the first cell."""
        return read_recipe(self.recipe, self.settings(next(iter(self.arms)), self.cell_values[0], of_all))

    def check_set(self, of_all: Mapping[str, str]) -> None:
        """Raises InputError for a field of --set in which the study's runs differ, and for impossible recipes."""
        differ = {"seed": f"its seeds are {self.first_seed}, {self.first_seed + 1}, …; --seeds sets their number"}
        differ |= dict.fromkeys(self.cells, f"its cells are {self.cell_values}")
        for cell in self.cell_values:
            differ |= dict.fromkeys(self.fields_of_cell(cell), f"the cell {cell} sets it")
        differ |= {"lr": f"it is tuned over {self.choose['lr']}"} if self.choose else {}
        for arm, values in self.arms.items():
            fixed = [field for field, value in values.items() if not f"{value}".endswith("%")]
            differ |= dict.fromkeys(fixed, f"the arm '{arm}' sets it")
        for field in of_all:
            if field in differ:
                raise InputError(f"--set {field}: the study is about this field ({differ[field]}); change its file")
        for arm in self.arms:
            for cell in self.cell_values:
                read_recipe(self.recipe, self.settings(arm, cell, of_all))


FIELDS = {field.name: field for field in dataclasses.fields(Study) if field.name != "name"}
REQUIRED = [name for name, field in FIELDS.items() if field.default is field.default_factory is dataclasses.MISSING]


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    """Returns values as --set KEY=VALUE takes them."""
    return {key: f"{value}".lower() if isinstance(value, bool) else f"{value}" for key, value in values.items()}


def folder_name(text: str) -> str:
    """Returns a value as a part of a folder's name: letters, digits, points and dashes."""
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in text).lower()


def _are_cells(cells) -> bool:
    values = list(cells.values()) if isinstance(cells, dict) else [None, None]
    fields = values[0].values() if values and isinstance(values[0], dict) else []
    are_values = not values or (isinstance(values[0], list | dict) and values[0])
    return len(values) <= 1 and are_values and all(isinstance(one, dict) for one in fields)


def _can_tune(choose) -> bool:
    if not isinstance(choose, dict) or (choose and set(choose) != {"lr", "seeds"}):
        return False
    rates, seeds = choose.get("lr", [1.0]), choose.get("seeds", 1)
    are_rates = isinstance(rates, list) and all(isinstance(rate, int | float) and rate > 0 for rate in rates)
    return are_rates and 0 < len(set(rates)) == len(rates) and type(seeds) is int and seeds > 0


def _wrong_arm(study) -> str | None:
    for arm, values in study.arms.items():
        like, samples = values.get(LIKE), f"{values.get('samples', '')}"
        if like is not None and (like not in [*study.arms] or LIKE in study.arms[like]):
            return f"arm '{arm}' is like '{like}'; expected an arm that is like no other"
        if samples.endswith("%") and not re.fullmatch(r"[1-9]\d*(\.\d+)?%", samples):
            return f"arm '{arm}' has samples {samples!r}; expected a number, or a percentage such as 110%"


def _set_twice(study) -> str | None:
    """Returns which field is given in two places, so that one of them would have no effect."""
    for place, fields in {"cells": study.cells, "set": study.set, **study.arms}.items():
        place = f"the arm '{place}'" if place in study.arms else place
        if "seed" in fields:
            return f"{place} sets seed; give `seeds` and `first_seed` instead"
        if place != "cells" and any(field in fields for field in study.cells):
            return f"{place} sets {next(iter(study.cells))}, which the cells vary"
        if study.choose and "lr" in fields and place in ("cells", "set"):
            return f"{place} sets lr, which is tuned"


SEEDS = Rule(
    "{path}: first_seed is {first_seed!r} and seeds is {seeds!r}; expected seeds from 0 to "
    f"{TUNING_SEEDS - 1}: those above tune learning rates",
    lambda study: study.first_seed + study.seeds > TUNING_SEEDS,
)
VALID = {  # fields: what is expected of them
    "question": ("a question", lambda study: isinstance(study.question, str)),
    "recipe": ("a file or a shipped name", lambda study: isinstance(study.recipe, str)),
    "measures": (f"one of {', '.join(MEASURES)}", lambda study: study.measures in [*MEASURES]),
    "seeds": ("a number of seeds, 1 or more", lambda study: type(study.seeds) is int and study.seeds > 0),
    "first_seed": ("a number, 0 or more", lambda study: type(study.first_seed) is int and study.first_seed >= 0),
    "arms": (
        "two arms or more, each a mapping of a recipe's fields",
        lambda study: (
            isinstance(study.arms, dict)
            and len(study.arms) > 1
            and all(isinstance(arm, dict) for arm in study.arms.values())
        ),
    ),
    "set": ("fields of the recipe and their values", lambda study: isinstance(study.set, dict)),
    "cells": (
        "one field of the recipe and its values, or a mapping of more fields for each value",
        lambda study: _are_cells(study.cells),
    ),
    "choose": ("lr: a list of distinct rates, and seeds: their number", lambda study: _can_tune(study.choose)),
    "compare": (
        "pairs [arm, baseline] of the arms",
        lambda study: (
            isinstance(study.compare, list)
            and all(isinstance(pair, list) and len(pair) == 2 for pair in study.compare)
            and all(arm in [*study.arms] for pair in study.compare for arm in pair)
        ),
    ),
}
RULES = [
    *(
        Rule(f"{{path}}: {field} is {{{field}!r}}; expected {expected}", lambda study, valid=valid: not valid(study))
        for field, (expected, valid) in VALID.items()
    ),
    SEEDS,
    Rule(
        "{path}: primary is {primary!r}; {measures} measures {found}",
        lambda study: study.primary not in MEASURES[study.measures] and ", ".join(MEASURES[study.measures]),
    ),
    Rule(
        "{path}: choose is {choose}; dense-scenes has no split to tune on: give the arms an lr",
        lambda study: study.choose and study.measures == "dense-scenes",
    ),
    Rule("{path}: {found}", lambda study: _wrong_arm(study) or _set_twice(study)),
]


def study_files() -> list[Path]:
    """Returns the shipped studies."""
    return sorted(shipped_folder("recipes").glob("studies/*.yaml"))


def read_study(path_or_name: str) -> Study:
    """Returns the study of a file or a shipped name; InputError, naming file and field, for an impossible one."""
    path = Path(path_or_name)
    if not path.is_file():
        shipped = {one.stem: one for one in study_files()}
        wanted = path_or_name.removesuffix(".yaml").removeprefix("recipes/").removeprefix("studies/")
        if wanted not in shipped:
            near = difflib.get_close_matches(wanted, shipped) or list(shipped)
            raise InputError(f"there is no file and no study '{path_or_name}'; there is {', '.join(near)}")
        path = shipped[wanted]
    values = read_yaml(path, f"of {', '.join(REQUIRED)}")
    for name in values:
        if name not in FIELDS:
            raise InputError(f"{path}: there is no field '{name}'; a study's fields are {', '.join(FIELDS)}")
    for name in REQUIRED:
        if name not in values:
            raise InputError(f"{path}: {name} is missing; a study holds {', '.join(REQUIRED)}")
    study = Study(**values, name=path.stem)
    check(RULES, SimpleNamespace(path=path, **vars(study)))
    _check_recipes(study, path)
    return study


def _check_recipes(study: Study, path: Path) -> None:
    """Raises InputError for impossible recipes, and for arms whose training is equal."""
    recipes: dict[tuple, dict] = {}
    for arm in study.arms:
        for cell in study.cell_values:
            try:
                found = read_recipe(study.recipe, study.settings(arm, cell)).as_dict()
            except InputError as error:
                place = "" if cell is None else f", cell {cell}"
                raise InputError(f"{path}, arm '{arm}'{place}: {error}") from None
            recipes[arm, cell] = {key: value for key, value in found.items() if key not in WORDS}
    for arm, baseline in study.pairs:
        same = all(recipes[arm, cell] == recipes[baseline, cell] for cell in study.cell_values)
        if same and (not study.choose or ("lr" in study.arms[arm]) == ("lr" in study.arms[baseline])):
            raise InputError(f"{path}: the arms '{arm}' and '{baseline}' train the same: expected a field that differs")


@dataclasses.dataclass(frozen=True)
class StudyCall:
    """A study, its folder, and what all of its runs are given."""

    study: Study
    out: Path
    runs_in: Path  # the folder of the runs, which studies of one recipe may share
    runs_flag: str  # that sets it
    device: str
    data: str | None  # shards instead of the recipe's
    set: Mapping[str, str]  # fields of the recipe with their values
    arguments: tuple[str, ...]  # of `superclip study`, which make the same call again
    scenes: Path = DEMO  # the folder for the demo's model and scenes
    settings: Settings = DEFAULTS  # of every `superclip run`


def study_call(
    name: str, out: Path | None, seeds: int | None, device: str, data: str | None, val_data: str | None,
    set_: Mapping[str, str], runs_in: Path | None = None, scenes: Path = DEMO, settings: Settings = DEFAULTS,
) -> StudyCall:  # fmt: skip
    """Returns the call; InputError if something cannot be trained or measured.

    Args:
        name: a study's file or shipped name.
        out: studies/NAME if None.
        seeds: the number of paired seeds; None for the study's.
        data, val_data: shards instead of the study's; with `val_data` OpenCLIP's own retrieval measures.
        set_: fields of the recipe with their values, of every run.
        runs_in: the folder of the runs, which studies of one recipe may share; OUT/runs if None.
        scenes: the folder for the demo's model and scenes.
        settings: of every `superclip run`.
    """
    study = read_study(name)
    out = out or Path("studies") / study.name
    arguments = {"--device": device, "--seeds": seeds, "--data": data, "--val-data": val_data, "--runs": runs_in}
    given = [part for flag, value in arguments.items() if value is not None for part in (flag, str(value))]
    given += [part for field, value in set_.items() for part in ("--set", f"{field}={value}")]
    if seeds is not None:
        study = dataclasses.replace(study, seeds=seeds)
        check([SEEDS], SimpleNamespace(path="--seeds", **vars(study)))
    if val_data is not None and study.measures != "validation":
        study = dataclasses.replace(study, measures="validation", primary="image_to_text_R@1", choose={})
    study.check_set(set_)
    first = study.settings(next(iter(study.arms)), study.cell_values[0], set_)
    set_ = {**set_, **settings_of_table(study.recipe, first, data)}
    if val_data is not None:
        set_ = {**set_, "flags.val-data": val_data}
    if study.is_of_scenes and data:
        raise InputError("--data without --val-data: the demo's scenes would measure what was trained on other data")
    if study.measures == "dense-scenes":
        require("a study of dense-scenes", "eval", "clip_benchmark", "requests")
    recipe = study.first_recipe(set_)
    if study.measures == "validation":
        flag = "imagenet-val" if study.primary.startswith("imagenet") else "val-data"
        if not recipe.flags.get(flag):
            option = "--val-data SHARDS" if flag == "val-data" else f"--set flags.{flag}=FOLDER"
            raise InputError(f"the study's primary measure is {study.primary}, which training measures with {option}")
        for arm in study.arms:
            for cell in study.cell_values:
                run = make_run(read_recipe(study.recipe, study.settings(arm, cell, set_)), data=data, device=device)
                if run.is_table:
                    run.check_data()
                else:
                    run.check_validation()
    if settings.stage:
        check_stage(make_run(recipe, data=data, device=device))
    if scenes != DEMO:
        written = data_of_scenes(study)
        set_ = {**set_, "model": f"local-dir:{scenes / written.model}"}
        data = f"{scenes / written.shards}"
    again = ("study", name, "--out", str(out), *given)
    runs_in, flag = (runs_in, "--runs") if runs_in else (out / "runs", "--out")
    return StudyCall(study, out, runs_in, flag, device, data, set_, again, scenes, settings)


def data_of_scenes(study: Study) -> TrainingData:
    """Returns which of the demo's models and shards a study trains."""
    recipe = study.first_recipe()
    places = [(data, f"{DEMO / data.shards}".replace("{seed}", f"{recipe.seed}")) for data in TRAINING_DATA]
    found = [data for data, shards in places if recipe.shards == shards]
    return next((data for data in found if recipe.model == f"local-dir:{DEMO / data.model}"), (*found, SCENES)[0])
