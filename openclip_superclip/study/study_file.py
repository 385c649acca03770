"""A study's file: the runs that answer a question, and the primary measure, which is named
before the first run."""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from itertools import permutations, product
from pathlib import Path
from typing import get_origin

from ..errors import InputError, refuse
from ..files import shipped_folder
from ..plans.recipe import KINDS, Recipe
from ..plans.recipe_files import read_recipe, read_yaml, refuse_streamed_validation

# the first seed of the trials that tune learning rates: the seeds of results are below it
TUNING_SEEDS = 1000
# in an arm: the arm from which it inherits the fields, including the tuned learning rate
LIKE = "like"
OF_SCENES = ("zero_shot", "image_to_text_R@1", "text_to_image_R@1", "tagging", "linear_probe")
MEASURES = {  # by what measures a run: its measures
    "demo": OF_SCENES,  # on the demo's held-out scenes
    # OpenCLIP's, --val-data
    "validation": ("image_to_text_R@1", "text_to_image_R@1", "imagenet-zeroshot-val-top1"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Arms, compared by paired seeds with the first arm or as in `compare`; cells are values of
    one more field."""

    question: str
    primary: str  # the measure that answers it
    recipe: str  # a file or a shipped name; what all runs have in common
    arms: dict[str, dict]  # by name: fields of the recipe with their values, as --set takes them
    seeds: int  # how many, the same for every arm
    first_seed: int = 0
    measures: str = "demo"  # one of MEASURES
    # fields of the recipe with their values, of every run
    set: dict = dataclasses.field(default_factory=dict)
    # one field: its values, or a mapping of more fields for each value
    cells: dict[str, list | dict] = dataclasses.field(default_factory=dict)
    # lr: values; seeds: the number of trials of each
    choose: dict = dataclasses.field(default_factory=dict)
    compare: list = dataclasses.field(default_factory=list)  # [arm, baseline], several
    name: str = ""  # of the file
    # fields of every run that the command sets, instead of those of `set`
    overrides: dict[str, str] = dataclasses.field(default_factory=dict)

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
    def cell_field(self) -> str | None:
        return next(iter(self.cells), None)

    @property
    def cell_values(self) -> list:
        """The values of the cells' field; [None] without cells."""
        return list(self.cells[self.cell_field]) if self.cells else [None]

    @property
    def result_seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def tuning_seeds(self) -> range:
        return range(TUNING_SEEDS, TUNING_SEEDS + self.choose.get("seeds", 0))

    def fields_of_cell(self, cell) -> dict[str, str]:
        """Returns the fields that a cell sets; {} without cells."""
        if cell is None:
            return {}
        values = self.cells[self.cell_field]
        more = values[cell] if isinstance(values, dict) else {}
        return as_texts({self.cell_field: cell} | more)

    @property
    def fields_of_all(self) -> dict[str, str]:
        """The fields that the study and the command set in every run."""
        return as_texts(self.set) | self.overrides

    def settings(self, arm: str, cell=None) -> dict[str, str]:
        """Returns the values of --set for the runs of an arm in a cell.

        An arm that is like another has that one's fields in the cell first. Samples in percent are
        whole steps, rounded up.
        """
        own = as_texts(self.arms[arm])
        if LIKE in own:
            settings = self.settings(own.pop(LIKE), cell)
        else:
            settings = self.fields_of_all | self.fields_of_cell(cell)
        percent = re.fullmatch(r"(\d*\.?\d+) ?%", own.get("samples", ""))
        if percent:
            recipe = read_recipe(self.recipe, settings)
            steps = recipe.samples * float(percent[1]) / 100 / recipe.global_batch_size
            own["samples"] = str(math.ceil(round(steps, 6)) * recipe.global_batch_size)
        return settings | own

    @property
    def first_settings(self) -> dict[str, str]:
        """The values of --set for the first arm's run of the first seed in the first cell."""
        settings = self.settings(next(iter(self.arms)), self.cell_values[0])
        return settings | {"seed": f"{self.first_seed}"}

    @property
    def first_recipe(self) -> Recipe:
        """The recipe of the first arm's runs in the first cell."""
        return read_recipe(self.recipe, self.first_settings)

    def check_overrides(self) -> None:
        """Raises InputError for a field of --set in which the study's runs differ, or that it
        tunes."""
        varied = {"seed"}
        if self.choose:
            varied.add("lr")
        for fields in (*self.arms.values(), *map(self.fields_of_cell, self.cell_values)):
            varied |= {name for name, value in fields.items() if not str(value).endswith("%")}
        refuse(
            f"--set {field}: the study varies or tunes this field; change it in the study's file"
            for field in self.overrides
            if field in varied
        )

    def check_recipes(self) -> None:
        """Raises InputError, naming the arm, for an impossible recipe."""
        for arm, cell in product(self.arms, self.cell_values):
            try:
                read_recipe(self.recipe, self.settings(arm, cell))
            except InputError as error:
                of_cell = "" if cell is None else f", {self.cell_field} {cell}"
                raise InputError(f"arm '{arm}'{of_cell}: {error}") from None

    def as_dict(self) -> dict:
        """Returns the fields of the file, and its name."""
        return {name: getattr(self, name) for name in (*FIELDS, "name")}


FIELDS = {
    field.name: field
    for field in dataclasses.fields(Study)
    if field.name not in ("name", "overrides")
}
REQUIRED = [
    name
    for name, field in FIELDS.items()
    if field.default is field.default_factory is dataclasses.MISSING
]


def as_texts(values: Mapping[str, object]) -> dict[str, str]:
    """Returns values as --set KEY=VALUE takes them."""
    return {
        str(key): json.dumps(value) if value is None or isinstance(value, bool) else str(value)
        for key, value in values.items()
    }


def problems(study: Study) -> Iterator[str]:
    """Yields what is wrong with a study's values; those after a wrong type cannot be checked."""
    for name, field in FIELDS.items():
        kind = get_origin(field.type) or field.type
        value = getattr(study, name)
        if type(value) is not kind:
            yield f"{name} is {value!r}; expected {KINDS.get(kind, 'a list')}"
    yield from _problems_with_arms(study)
    if study.measures not in MEASURES:
        yield f"measures is {study.measures!r}; expected one of {', '.join(MEASURES)}"
    measures = MEASURES[study.measures]
    if study.primary not in measures:
        yield f"primary is {study.primary!r}; expected one of {', '.join(measures)}"
    if not 0 <= study.first_seed < study.first_seed + study.seeds <= TUNING_SEEDS:
        yield (
            f"first_seed is {study.first_seed!r} and seeds is {study.seeds!r}; expected seeds from "
            f"0 to {TUNING_SEEDS - 1}"
        )
    if study.cells and not _are_cells(study.cells):
        yield (
            f"cells is {study.cells!r}; expected one field and its different values, or a "
            "mapping of more fields for each value"
        )
    rates = study.choose.get("lr")
    num_trials = study.choose.get("seeds")
    if study.choose and not (
        study.choose.keys() == {"lr", "seeds"}
        and isinstance(rates, list)
        and rates
        and type(num_trials) is int
        and num_trials > 0
    ):
        yield (
            f"choose is {study.choose!r}; expected lr: a list of rates, and seeds: the number of "
            "trials of each"
        )


def _problems_with_arms(study: Study) -> Iterator[str]:
    are_named = all(
        isinstance(name, str) and isinstance(fields, dict) for name, fields in study.arms.items()
    )
    if len(study.arms) < 2 or not are_named:
        yield (
            f"arms is {study.arms!r}; expected two or more, each a name and a mapping of a "
            "recipe's fields"
        )
    others = [arm for arm, fields in study.arms.items() if LIKE not in fields]
    for arm, fields in study.arms.items():
        if LIKE in fields and fields[LIKE] not in others:
            yield f"arm '{arm}': `like` names an arm that does not exist or has `like` itself"
    pairs = list(map(list, permutations(study.arms, 2)))
    if any(pair not in pairs for pair in study.compare):
        yield f"compare is {study.compare!r}; expected pairs [arm, baseline] of the arms"


def _are_cells(cells: dict) -> bool:
    """Returns whether cells are one field with its different values, or mappings."""
    values, *others = cells.values()
    are_mappings = isinstance(values, dict) and all(
        isinstance(fields, dict) for fields in values.values()
    )
    are_values = isinstance(values, list) and len(set(map(str, values))) == len(values)
    return bool(values) and not others and (are_mappings or are_values) and None not in values


def study_files() -> list[Path]:
    """Returns the shipped studies."""
    return sorted(shipped_folder("recipes").glob("studies/*.yaml"))


def read_study(path_or_name: str) -> Study:
    """Returns the study of a file or a shipped name; InputError, naming file and field, for an
    impossible one."""
    path = Path(path_or_name)
    if not path.is_file():
        shipped = {file.stem: file for file in study_files()}
        if path_or_name not in shipped:
            raise InputError(
                f"there is no file or study '{path_or_name}'; expected a file, or one of "
                f"{', '.join(shipped)}"
            )
        path = shipped[path_or_name]
    values = read_yaml(path, f"of {', '.join(REQUIRED)}")
    refuse(
        f"{path}: there is no field '{name}'; a study's fields are {', '.join(FIELDS)}"
        for name in values
        if name not in FIELDS
    )
    values = {name: value for name, value in values.items() if value is not None}
    refuse(
        f"{path}: {name} is missing; a study needs {', '.join(REQUIRED)}"
        for name in REQUIRED
        if name not in values
    )
    study = Study(**values, name=path.stem)
    refuse(f"{path}: {problem}" for problem in problems(study))
    try:
        study.check_recipes()
        for arm, cell in product(study.arms, study.cell_values):
            refuse_streamed_validation(read_recipe(study.recipe, study.settings(arm, cell)))
    except InputError as error:
        raise InputError(f"{path}, {error}") from None
    return study
