"""A study's file: the runs that answer a question, and the primary measure, which is named
before the first run."""

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import get_origin

from ...environment import require
from ...errors import InputError, Rule, check
from ...files import check_results, shipped_folder
from ...runs.plan import settings_of_table
from ...runs.recipe import KINDS, Recipe, read_recipe, read_yaml
from ...runs.run import DEFAULTS, Settings
from ..demo import natural
from ..demo.data import SCENES, TRAINING_DATA, TrainingData

# the first seed of the trials that tune learning rates: the seeds of results are below it
TUNING_SEEDS = 1000
RESULTS = ("study.json", "study.csv", "study.md", "study.png")  # the first one has the mark
MARK = '"primary": '
# in an arm: the arm from which it inherits the fields, including the tuned learning rate
LIKE = "like"
DEMO = Path("demo")  # the folder in which the shipped recipes expect the demo's model and scenes
OF_SCENES = ("zero_shot", "image_to_text_R@1", "text_to_image_R@1", "tagging", "linear_probe")
MEASURES = {  # by what measures a run: its measures
    "demo": OF_SCENES,
    "unseen-drawings": OF_SCENES,  # on scenes drawn by a designer that no training shows
    # both, on other scenes for each seed
    "transfer": (*OF_SCENES, *(f"seen_{name}" for name in OF_SCENES)),
    "second-draw": OF_SCENES,  # on scenes of another 100 objects, which its training shows too
    "natural": natural.MEASURES,  # on the data set `natural`, another one for each seed
    # on the scenes' pixels, by `superclip evaluate --suite dense`
    "dense-scenes": ("mIoU", "depth_RMSE"),
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
    # one field: its values, or a mapping of
    cells: dict[str, list | dict] = dataclasses.field(default_factory=dict)
    # more fields for each value
    # lr: values; seeds: the number of trials of each
    choose: dict = dataclasses.field(default_factory=dict)
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
    def cell_field(self) -> str | None:
        return next(iter(self.cells), None)

    @property
    def cell_values(self) -> list:
        """The values of the cells' field; [None] without cells."""
        return list(self.cells[self.cell_field]) if self.cells else [None]

    def fields_of_cell(self, cell) -> dict[str, str]:
        """Returns the fields that a cell sets in addition to its own."""
        values = self.cells.get(self.cell_field)
        return texts(values[cell]) if isinstance(values, dict) else {}

    def settings(
        self, arm: str, cell=None, of_all: Mapping[str, str] = MappingProxyType({})
    ) -> dict[str, str]:
        """Returns the values of --set for the runs of an arm in a cell, `of_all` being those of
        every run.

        An arm that is like another has that one's fields first. Samples in percent are whole steps,
        rounded up.
        """
        own = texts(self.arms[arm])
        other = own.pop(LIKE, None)
        found = self.settings(other, None, of_all) if other else texts(self.set) | dict(of_all)
        if cell is not None:
            found |= texts({self.cell_field: cell}) | self.fields_of_cell(cell)
        if percent := re.fullmatch(r"(\d*\.?\d+) ?%", own.get("samples", "")):
            recipe = read_recipe(self.recipe, found)
            steps = math.ceil(
                round(recipe.samples * float(percent[1]) / 100 / recipe.global_batch_size, 6)
            )
            own["samples"] = str(steps * recipe.global_batch_size)
        return found | own

    def first_recipe(self, of_all: Mapping[str, str] = MappingProxyType({})) -> Recipe:
        """Returns the recipe of the first arm's runs in the first cell."""
        return read_recipe(
            self.recipe, self.settings(next(iter(self.arms)), self.cell_values[0], of_all)
        )

    def check_set(self, of_all: Mapping[str, str]) -> None:
        """Raises InputError for a field of --set in which the study's runs differ, and for
        impossible recipes."""
        differ = {
            "seed",
            *self.cells,
            *(field for cell in self.cell_values for field in self.fields_of_cell(cell)),
        }
        differ |= {"lr"} if self.choose else set()
        differ |= {
            name
            for arm in self.arms.values()
            for name, value in arm.items()
            if not f"{value}".endswith("%")
        }
        for field in of_all:
            if field in differ:
                raise InputError(
                    f"--set {field}: the study varies or tunes this field; change it in the "
                    "study's file"
                )
        self.check_recipes(of_all)

    def check_recipes(self, of_all: Mapping[str, str] = MappingProxyType({})) -> None:
        """Raises InputError, naming the arm, for an impossible recipe."""
        for arm in self.arms:
            for cell in self.cell_values:
                try:
                    read_recipe(self.recipe, self.settings(arm, cell, of_all))
                except InputError as error:
                    place = "" if cell is None else f", {self.cell_field} {cell}"
                    raise InputError(f"arm '{arm}'{place}: {error}") from None


FIELDS = {field.name: field for field in dataclasses.fields(Study) if field.name != "name"}
REQUIRED = [
    name
    for name, field in FIELDS.items()
    if field.default is field.default_factory is dataclasses.MISSING
]


def texts(values: Mapping[str, object]) -> dict[str, str]:
    """Returns values as --set KEY=VALUE takes them."""
    as_json = (bool, type(None))
    return {
        f"{key}": json.dumps(value) if isinstance(value, as_json) else f"{value}"
        for key, value in values.items()
    }


def _wrong_types(study) -> list[str]:
    """Returns a message for each field whose value has another type."""
    kinds = {name: get_origin(field.type) or field.type for name, field in FIELDS.items()}
    given = {
        name: getattr(study, name)
        for name, kind in kinds.items()
        if type(getattr(study, name)) is not kind
    }
    return [
        f"{name} is {value!r}; expected {KINDS.get(kinds[name], 'a list')}"
        for name, value in given.items()
    ]


def _are_cells(cells: dict) -> bool:
    if len(cells) != 1:
        return not cells
    (values,) = cells.values()
    more = values.values() if isinstance(values, dict) else ()
    return (
        isinstance(values, list | dict)
        and len(values) > 0
        and all(isinstance(fields, dict) for fields in more)
    )


def _can_tune(choose: dict) -> bool:
    if choose.keys() != {"lr", "seeds"}:
        return not choose
    rates, seeds = choose["lr"], choose["seeds"]
    are_rates = isinstance(rates, list) and all(
        isinstance(rate, int | float) and 0 < rate < math.inf for rate in rates
    )
    return are_rates and len(rates) > 0 and type(seeds) is int and seeds > 0


def _wrong_likes(study) -> list[str]:
    """Returns the arms that are like no arm, or like one that is itself like another."""
    likes = {arm: values[LIKE] for arm, values in study.arms.items() if LIKE in values}
    return [arm for arm, other in likes.items() if other not in [*study.arms] or other in [*likes]]


SEEDS = Rule(
    "{path}: first_seed is {first_seed!r} and seeds is {seeds!r}; expected seeds from 0 "
    f"to {TUNING_SEEDS - 1}",
    lambda study: not 0 <= study.first_seed < study.first_seed + study.seeds <= TUNING_SEEDS,
)
RULES = [
    Rule("{path}: {found[0]}", _wrong_types),
    Rule(
        "{path}: arms is {arms!r}; expected two or more, each a name and a mapping of a "
        "recipe's fields",
        lambda study: (
            len(study.arms) < 2
            or {*map(type, study.arms), *map(type, study.arms.values())} != {str, dict}
        ),
    ),
    Rule(
        "{path}: arm '{found[0]}' is like an arm that does not exist or has `like` itself",
        _wrong_likes,
    ),
    Rule(
        f"{{path}}: measures is {{measures!r}}; expected one of {', '.join(MEASURES)}",
        lambda study: study.measures not in [*MEASURES],
    ),
    Rule(
        "{path}: primary is {primary!r}; expected one of {found}",
        lambda study: (
            study.primary not in MEASURES[study.measures] and ", ".join(MEASURES[study.measures])
        ),
    ),
    SEEDS,
    Rule(
        "{path}: cells is {cells!r}; expected one field and its values, or a mapping of more "
        "fields for each value",
        lambda study: not _are_cells(study.cells),
    ),
    Rule(
        "{path}: choose is {choose!r}; expected lr: a list of rates, and seeds: the number of "
        "trials of each",
        lambda study: not _can_tune(study.choose),
    ),
    Rule(
        "{path}: choose is {choose}; dense-scenes has no split to tune on: set lr in the arms",
        lambda study: study.choose and study.measures == "dense-scenes",
    ),
    Rule(
        "{path}: compare is {compare!r}; expected pairs [arm, baseline] of the arms",
        lambda study: [
            pair
            for pair in study.compare
            if pair not in [[*two] for two in permutations(study.arms, 2)]
        ],
    ),
]


def study_files() -> list[Path]:
    """Returns the shipped studies."""
    return sorted(shipped_folder("recipes").glob("studies/*.yaml"))


def read_study(path_or_name: str) -> Study:
    """Returns the study of a file or a shipped name; InputError, naming file and field, for an
    impossible one."""
    path = Path(path_or_name)
    if not path.is_file():
        shipped = {one.stem: one for one in study_files()}
        wanted = (
            path_or_name.removesuffix(".yaml").removeprefix("recipes/").removeprefix("studies/")
        )
        if wanted not in shipped:
            near = difflib.get_close_matches(wanted, shipped) or list(shipped)
            raise InputError(
                f"there is no file or study '{path_or_name}'; there is {', '.join(near)}"
            )
        path = shipped[wanted]
    values = read_yaml(path, f"of {', '.join(REQUIRED)}")
    for name in values:
        if name not in FIELDS:
            raise InputError(
                f"{path}: there is no field '{name}'; a study's fields are {', '.join(FIELDS)}"
            )
    for name in REQUIRED:
        if values.get(name) is None:
            raise InputError(f"{path}: {name} is missing; a study needs {', '.join(REQUIRED)}")
    study = Study(
        **{name: value for name, value in values.items() if value is not None}, name=path.stem
    )
    check(RULES, SimpleNamespace(path=path, **vars(study)))
    try:
        study.check_recipes()
    except InputError as error:
        raise InputError(f"{path}, {error}") from None
    return study


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
    """Returns the call; InputError if something cannot be trained or measured.

    `name` is a study's file or shipped name. If None, `out` is studies/NAME, `runs_in` is OUT/runs,
    and the others are the study's. With `val_data`, the measures are OpenCLIP's own.
    """
    study = read_study(name)
    out = out or Path("studies") / study.name
    check_results(out, "--out", RESULTS, MARK)
    arguments = {
        "--device": device,
        "--seeds": seeds,
        "--data": data,
        "--val-data": val_data,
        "--runs": runs_in,
    }
    given = [
        part
        for flag, value in arguments.items()
        if value is not None
        for part in (flag, str(value))
    ]
    given += [part for field, value in set_.items() for part in ("--set", f"{field}={value}")]
    if seeds is not None:
        study = dataclasses.replace(study, seeds=seeds)
        check([SEEDS], SimpleNamespace(path="--seeds", **vars(study)))
    if val_data is not None and study.measures != "validation":
        study = dataclasses.replace(
            study, measures="validation", primary="image_to_text_R@1", choose={}
        )
    study.check_set(set_)
    first = study.settings(next(iter(study.arms)), study.cell_values[0], set_)
    set_ = {**set_, **settings_of_table(study.recipe, first, data)}
    if val_data is not None:
        set_ = {**set_, "flags.val-data": val_data}
    if study.is_of_scenes and data:
        raise InputError(
            "--data requires --val-data: this study would otherwise evaluate on the demo's scenes"
        )
    if study.measures == "dense-scenes":
        require("a study of dense-scenes", "eval", "clip_benchmark", "requests")
    recipe = study.first_recipe(set_)
    if study.measures == "validation":
        flag = "imagenet-val" if study.primary.startswith("imagenet") else "val-data"
        if not recipe.flags.get(flag):
            option = (
                "--val-data SHARDS (or a .csv)"
                if flag == "val-data"
                else f"--set flags.{flag}=FOLDER"
            )
            raise InputError(
                f"the study's primary measure is {study.primary}, which training measures with "
                f"{option}"
            )
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
    places = [
        (data, f"{DEMO / data.shards}".replace("{seed}", f"{recipe.seed}"))
        for data in TRAINING_DATA
    ]
    found = [data for data, shards in places if recipe.shards == shards]
    return next(
        (data for data in found if recipe.model == f"local-dir:{DEMO / data.model}"),
        (*found, SCENES)[0],
    )
