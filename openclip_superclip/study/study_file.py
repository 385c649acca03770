"""A study's file: the runs that answer a question, and the primary measure, which is named
before the first run."""

import dataclasses
import difflib
import json
from collections.abc import Iterator, Mapping
from itertools import permutations, product
from pathlib import Path
from typing import get_origin

from ..errors import InputError, refuse
from ..files import shipped_folder
from ..plans.recipe import KINDS, Recipe
from ..plans.recipe_files import read_recipe, read_yaml, refuse_streamed_validation
from ..removed import STUDY_FIELDS

MAX_SEEDS = 1000
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
    measures: str = "demo"  # one of MEASURES
    # fields of the recipe with their values, of every run
    set: dict = dataclasses.field(default_factory=dict)
    # one field: its values, or a mapping of more fields for each value
    cells: dict[str, list | dict] = dataclasses.field(default_factory=dict)
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
        """Returns the values of --set for the runs of an arm in a cell."""
        return self.fields_of_all | self.fields_of_cell(cell) | as_texts(self.arms[arm])

    @property
    def first_settings(self) -> dict[str, str]:
        """The values of --set for the first arm's run of the first seed in the first cell."""
        return self.settings(next(iter(self.arms)), self.cell_values[0]) | {"seed": "0"}

    @property
    def first_recipe(self) -> Recipe:
        """The recipe of the first arm's runs in the first cell."""
        return read_recipe(self.recipe, self.first_settings)

    def check_overrides(self) -> None:
        """Raises InputError for a field of --set in which the study's runs differ."""
        varied = {"seed"}.union(*self.arms.values())
        varied = varied.union(*map(self.fields_of_cell, self.cell_values))
        refuse(
            f"--set {field}: the study varies this field; change it in the study's file"
            for field in self.overrides
            if field in varied
        )

    def recipes(self) -> Iterator[Recipe]:
        """Yields the recipe of each arm in each cell; InputError, naming the arm, for an
        impossible one."""
        for arm, cell in product(self.arms, self.cell_values):
            try:
                yield read_recipe(self.recipe, self.settings(arm, cell))
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
    if not 1 <= study.seeds <= MAX_SEEDS:
        yield f"seeds is {study.seeds!r}; expected a number from 1 to {MAX_SEEDS}"
    if study.cells and not _are_cells(study.cells):
        yield (
            f"cells is {study.cells!r}; expected one field and its different values, or a "
            "mapping of more fields for each value"
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
            near = difflib.get_close_matches(path_or_name, shipped, n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise InputError(
                f"there is no file or study '{path_or_name}'; {meant}expected a file, or one of "
                f"{', '.join(shipped)}"
            )
        path = shipped[path_or_name]
    values = read_yaml(path, f"of {', '.join(REQUIRED)}")
    refuse(
        f"{path}: the field {name} was removed: {STUDY_FIELDS[name]}"
        for name in values
        if name in STUDY_FIELDS
    )
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
        for recipe in study.recipes():
            refuse_streamed_validation(recipe)
    except InputError as error:
        raise InputError(f"{path}, {error}") from None
    return study
