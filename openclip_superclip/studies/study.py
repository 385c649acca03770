"""A study's file: which runs answer a question, and the measure that was named before the first of them."""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from ruamel.yaml import YAML, YAMLError

from ..demo import natural
from ..demo.data import SCENES, TRAINING_DATA, TrainingData
from ..environment import require
from ..errors import InputError, reason
from ..files import shipped_folder
from ..runs.plan import make_run, rows_of_table
from ..runs.recipe import WORDS, read_recipe
from ..runs.run import DEFAULTS, Settings
from ..runs.stage import check_stage

CHOOSING = 1000  # the seeds with which a learning rate is chosen begin here: none of them is reported


LIKE = "like"  # in an arm: another arm, whose fields it takes, the chosen learning rate among them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Arms are compared with the first, or as `compare` says, at equal seeds; cells are values of one more field."""

    question: str
    primary: str  # the measure that answers it
    recipe: str  # a file or a shipped name; what all runs have in common
    arms: dict[str, dict]  # by name: fields of the recipe with their values, as --set takes them
    seeds: int  # how many, the same for every arm
    first_seed: int = 0
    measures: str = "demo"  # one of MEASURES: scenes, or "validation" (OpenCLIP's own, --val-data)
    set: dict = dataclasses.field(default_factory=dict)  # fields of the recipe with their values, of every run
    cells: dict[str, list | dict] = dataclasses.field(default_factory=dict)  # one field: its values, or each value's
    # mapping of more fields
    choose: dict = dataclasses.field(default_factory=dict)  # lr: values; seeds: how many, beyond the study's own
    compare: list = dataclasses.field(default_factory=list)  # [arm, baseline], several
    name: str = ""  # of the file

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The comparisons: an arm and its baseline."""
        first, *others = self.arms
        return [tuple(pair) for pair in self.compare] or [(arm, first) for arm in others]

    @property
    def is_of_scenes(self) -> bool:
        """Whether the demo's scenes measure it."""
        return self.measures != "validation"

    @property
    def choosing_measures(self) -> str:
        """What measures the runs that choose a learning rate: of drawings that no training shows, none is looked at."""
        return "demo" if self.measures == "unseen-drawings" else self.measures

    @property
    def of_all(self) -> dict[str, str]:
        """The fields of every run, as --set takes them."""
        return {field: _text(value) for field, value in self.set.items()}

    @property
    def cell_field(self) -> str | None:
        return next(iter(self.cells), None)

    @property
    def cell_values(self) -> list:
        """The values of the cells' field; one, None, where there is no such field."""
        return list(self.cells[self.cell_field]) if self.cells else [None]

    def settings(self, arm: str, cell=None, of_all: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
        """Returns what --set is given for the runs of an arm in a cell, `of_all` being the fields of every run.

        An arm that is like another has that one's fields first. Samples in percent are whole steps, rounded up.
        """
        values = dict(self.arms[arm])
        other = values.pop(LIKE, None)
        shared = self.settings(other, None, of_all) if other else {}
        of_cell = {} if cell is None else {self.cell_field: _text(cell)} | self._of_cell(cell)
        found = self.of_all | dict(of_all) | shared | of_cell
        own = {field: _text(value) for field, value in values.items()}
        if own.get("samples", "").endswith("%"):
            recipe = read_recipe(self.recipe, found)
            share = float(own["samples"].removesuffix("%")) / 100
            steps = math.ceil(round(recipe.samples * share / recipe.global_batch_size, 6))
            own["samples"] = str(steps * recipe.global_batch_size)
        return found | own

    def _of_cell(self, cell) -> dict[str, str]:
        """Returns the fields that a cell sets beside its own."""
        values = self.cells[self.cell_field]
        return {field: _text(value) for field, value in values[cell].items()} if isinstance(values, dict) else {}

    def check_set(self, of_all: Mapping[str, str]) -> None:
        """Raises InputError for a field of --set that the study's runs differ by, and for what no recipe can be."""
        differ = {"seed": f"its seeds are {self.first_seed}, {self.first_seed + 1}, …: --seeds says how many"}
        differ |= dict.fromkeys(self.cells, f"it is what its cells vary: {self.cell_values}")
        for cell in self.cell_values if self.cells else []:
            differ |= dict.fromkeys(self._of_cell(cell), f"the cell {cell} sets it")
        differ |= {"lr": f"it is chosen from {self.choose['lr']}"} if self.choose else {}
        for arm, values in self.arms.items():
            differ |= {
                field: f"the arm '{arm}' sets it" for field, value in values.items() if not f"{value}".endswith("%")
            }
        for field in of_all:
            if field in differ:
                raise InputError(f"--set {field}: the study is about this field ({differ[field]}); change its file")
        for arm in self.arms:
            for cell in self.cell_values:
                read_recipe(self.recipe, self.settings(arm, cell, of_all))


FIELDS = {field.name: field for field in dataclasses.fields(Study) if field.name != "name"}


REQUIRED = [name for name, field in FIELDS.items() if field.default is field.default_factory is dataclasses.MISSING]


OF_SCENES = ("zero_shot", "image_to_text_R@1", "text_to_image_R@1", "tagging", "linear_probe")


MEASURES = {  # what measures a run: the measures that it has
    "demo": OF_SCENES,
    "unseen-drawings": OF_SCENES,  # of scenes drawn by a designer whom no training shows
    "second-draw": OF_SCENES,  # of scenes of another 100 objects, which those of the training show, too
    "natural": natural.MEASURES,  # of the data set `natural`, another one for each seed
    "dense-scenes": ("mIoU", "depth_RMSE"),  # of the scenes' pixels, by `superclip evaluate --suite dense`
    "validation": ("image_to_text_R@1", "text_to_image_R@1", "imagenet-zeroshot-val-top1"),
}


def study_files() -> list[Path]:
    """Returns the shipped studies."""
    return sorted(shipped_folder("recipes").glob("studies/*.yaml"))


def read_study(path_or_name: str) -> Study:
    """Returns the study of a file or a shipped name; InputError, naming file and field, for what cannot be."""
    path = _find(path_or_name)
    try:
        values = YAML(typ="safe").load(path.read_text())
    except (YAMLError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable YAML file: {reason(error)}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a YAML mapping of {', '.join(REQUIRED)}")
    for name in values:
        if name not in FIELDS:
            raise InputError(f"{path}: there is no field '{name}'; a study's fields are {', '.join(FIELDS)}")
    for name in REQUIRED:
        if name not in values:
            raise InputError(f"{path}: {name} is missing; a study holds {', '.join(REQUIRED)}")
    study = Study(**values, name=path.stem)
    _check(study, path)
    return study


def _find(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    known = {path.stem: path for path in study_files()}
    wanted = name.removesuffix(".yaml").removeprefix("recipes/").removeprefix("studies/")
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known) or list(known)
        raise InputError(f"there is no file and no study '{name}'; there is {', '.join(near)}")
    return known[wanted]


def _check(study: Study, path: Path) -> None:
    """Raises InputError for arms, cells and comparisons that do not fit, and for runs whose recipes cannot be."""
    for field, kind, expected in (
        ("question", str, "a question"),
        ("primary", str, "the measure that answers it"),
        ("recipe", str, "a file or a shipped name"),
        ("measures", str, f"one of {', '.join(MEASURES)}"),
        ("compare", list, "[arm, baseline], several"),
        ("arms", dict, "two arms or more, each a mapping of a recipe's fields"),
        ("cells", dict, "one field of the recipe and its values"),
        ("set", dict, "fields of the recipe and their values"),
        ("choose", dict, "lr: values, and seeds: how many"),
    ):
        if not isinstance(getattr(study, field), kind):
            raise InputError(f"{path}: {field} is {getattr(study, field)!r}; expected {expected}")
    if len(study.arms) < 2 or not all(isinstance(arm, dict) for arm in study.arms.values()):
        raise InputError(f"{path}: arms is {study.arms}; expected two arms or more, each a mapping of fields")
    folders: dict[str, str] = {}
    for arm in study.arms:
        other = folders.setdefault(folder_name(str(arm)), arm)
        if not isinstance(arm, str) or other is not arm:
            raise InputError(f"{path}: an arm is {arm!r}; expected a name whose letters and digits no other arm has")
    if type(study.seeds) is not int or study.seeds < 1:
        raise InputError(f"{path}: seeds is {study.seeds!r}; expected a number of seeds, 1 or more")
    if type(study.first_seed) is not int or study.first_seed < 0:
        raise InputError(f"{path}: first_seed is {study.first_seed!r}; expected a number, 0 or more")
    check_seeds(study, f"{path}: first_seed")
    if study.measures not in MEASURES:
        raise InputError(f"{path}: measures is {study.measures!r}; expected one of {', '.join(MEASURES)}")
    if study.primary not in MEASURES[study.measures]:
        expected = ", ".join(MEASURES[study.measures])
        raise InputError(f"{path}: primary is {study.primary!r}; {study.measures} measures {expected}")
    if study.choose and study.measures == "dense-scenes":
        raise InputError(f"{path}: choose is {study.choose}; dense-scenes has none to choose by: give the arms an lr")
    if len(study.cells) > 1 or not all(map(_can_be_cells, study.cells.values())):
        raise InputError(
            f"{path}: cells is {study.cells}; expected one field of the recipe and its values, or for each value a "
            "mapping of more fields"
        )
    _check_own_fields(study, path)
    if study.choose and not _can_choose(study.choose):
        raise InputError(f"{path}: choose is {study.choose}; expected lr: [rates, none twice], and seeds: how many")
    for pair in study.compare:
        names = pair if isinstance(pair, list) and all(isinstance(name, str) for name in pair) else []
        if len(set(names)) != 2 or len(names) != 2 or not set(names) <= set(study.arms):
            raise InputError(f"{path}: compare holds {pair}; expected [arm, baseline] of {', '.join(study.arms)}")
    for arm, values in study.arms.items():
        other = values.get(LIKE)
        if other is not None and (not isinstance(other, str) or LIKE in study.arms.get(other, [LIKE])):
            raise InputError(f"{path}: arm '{arm}' is like '{other}'; expected an arm that is like no other")
    for arm, values in study.arms.items():
        share = f"{values.get('samples', '')}"
        if share.endswith("%") and not re.fullmatch(r"[1-9]\d*(\.\d+)?%", share):
            raise InputError(f"{path}: arm '{arm}' has samples {share!r}; expected a number, or a share such as 110%")
    _check_recipes(study, path)


def check_seeds(study: Study, told: str) -> None:
    """Raises InputError, which begins with `told`, where seeds of the study are among those that choose rates."""
    if study.first_seed + study.seeds > CHOOSING:
        raise InputError(
            f"{told} is {study.first_seed!r} and seeds is {study.seeds!r}; expected seeds from 0 to {CHOOSING - 1}: "
            "those above choose learning rates"
        )


def _check_own_fields(study: Study, path: Path) -> None:
    """Raises InputError for a field that is said twice, so that one of the two would be of no effect."""
    places = {"set": study.set, **{f"the arm '{arm}'": values for arm, values in study.arms.items()}}
    cells = study.cells.get(study.cell_field)
    places |= {f"the cell {cell}": fields for cell, fields in cells.items()} if isinstance(cells, dict) else {}
    for place, fields in {"cells": study.cells, **places}.items():
        if "seed" in fields:
            raise InputError(f"{path}: {place} sets seed; `seeds` says how many, and `first_seed` where they begin")
        if place != "cells" and study.cell_field in fields:
            raise InputError(f"{path}: {place} sets {study.cell_field}, which the cells vary")
        if study.choose and "lr" in fields and not place.startswith("the arm"):
            raise InputError(f"{path}: {place} sets lr, which is chosen")


def _check_recipes(study: Study, path: Path) -> None:
    """Raises InputError for runs whose recipes cannot be, and for arms or cells that train the same."""
    recipes: dict[tuple, dict] = {}
    for arm in study.arms:
        for cell in study.cell_values:
            try:
                found = read_recipe(study.recipe, study.settings(arm, cell)).as_dict()
            except InputError as error:
                where = "" if cell is None else f", cell {cell}"
                raise InputError(f"{path}, arm '{arm}'{where}: {error}") from None
            recipes[arm, cell] = {key: value for key, value in found.items() if key not in WORDS}
    chosen = {arm: "lr" not in values for arm, values in study.arms.items() if study.choose}
    for arm, baseline in study.pairs:
        same = all(recipes[arm, cell] == recipes[baseline, cell] for cell in study.cell_values)
        if same and chosen.get(arm) == chosen.get(baseline):
            raise InputError(f"{path}: the arms '{arm}' and '{baseline}' train the same: expected a field that differs")
    for place, cell in enumerate(study.cell_values):
        for other in study.cell_values[:place]:
            if all(recipes[arm, other] == recipes[arm, cell] for arm in study.arms):
                raise InputError(f"{path}: cells holds {study.cell_field} {cell} twice")


def folder_name(told: str) -> str:
    """Returns the part of a folder's name that tells an arm or a cell: letters, digits, points and dashes."""
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in told).lower()


def _can_choose(choose: dict) -> bool:
    rates, seeds = choose.get("lr"), choose.get("seeds")
    if set(choose) != {"lr", "seeds"} or not isinstance(rates, list) or type(seeds) is not int or seeds < 1:
        return False
    try:
        numbers = {float(rate) for rate in rates}
    except (TypeError, ValueError):
        return False
    return 0 < len(numbers) == len(rates) and min(numbers) > 0


def _can_be_cells(values) -> bool:
    of_each = values.values() if isinstance(values, dict) else []
    return isinstance(values, list | dict) and len(values) > 0 and all(isinstance(fields, dict) for fields in of_each)


def _text(value) -> str:
    """Returns a value as it is written after --set KEY=."""
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else f"{value}"


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
    settings: Settings = DEFAULTS  # of every `superclip run`


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
    settings: Settings = DEFAULTS,
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
    set_ = {**set_, **rows_of_table(study.recipe, _of_first(study, set_), data)}
    if val_data is not None:
        set_ = {**set_, "flags.val-data": val_data}
    if bool(data) != bool(val_data) and study.is_of_scenes and data:
        raise InputError("--data without --val-data: the demo's scenes would measure what was trained on other data")
    if study.measures == "dense-scenes":
        require("a study of dense-scenes", "eval", "clip_benchmark", "requests")
    if study.measures == "validation":
        _check_measured(study, set_)
        _check_tables(study, device, data, set_)
    if settings.stage:
        arm, cell = next(iter(study.arms)), study.cell_values[0]
        check_stage(make_run(read_recipe(study.recipe, study.settings(arm, cell, set_)), data=data, device=device))
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
    places = [(data, f"{DEMO / data.shards}".replace("{seed}", f"{recipe.seed}")) for data in TRAINING_DATA]
    found = [data for data, shards in places if recipe.shards == shards]
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
            plan = make_run(read_recipe(study.recipe, study.settings(arm, cell, set_)), data=data, device=device)
            if plan.is_table:
                plan.check_data()
            else:
                plan.check_validation()


def _check_measured(study: Study, set_: Mapping[str, str]) -> None:
    """Raises InputError where the training would not measure the study's primary measure."""
    flag = MEASURED_WITH.get(study.primary, "val-data")
    recipe = read_recipe(study.recipe, _of_first(study, set_))
    if not recipe.flags.get(flag):
        given = "--val-data SHARDS" if flag == "val-data" else f"--set flags.{flag}=FOLDER"
        raise InputError(f"the study's primary measure is {study.primary}, which the training takes with {given}")
