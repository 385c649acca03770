"""Recipes: their fields, the allowed values, and the shipped recipe files, each with a base and
several runs."""

import copy
import dataclasses
import difflib
import functools
import io
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.error import MarkedYAMLError

from ..checkpoints.model_configurations import model_for_pretrained
from ..data.tables import Columns
from ..errors import InputError, Rule, check, reason
from ..files import shipped_folder
from ..flags import Config, is_idf_file
from ..option_effects import effect_of

METHODS = {  # with the paper's names
    "clip": "CLIP",
    "superclip": "SuperCLIP",
    "siglip": "SigLIP",
    "supersiglip": "SuperSigLIP",
    "flip": "FLIP",
    "superflip": "SuperFLIP",
}
SCHEDULES = ("cosine", "const", "const-cooldown")


def _field(
    help: str, holds: Callable | None = None, expected: str = "", **default
) -> dataclasses.Field:
    return dataclasses.field(
        metadata={"help": help, "holds": holds, "expected": expected}, **default
    )


def _one_of(help: str, names) -> dataclasses.Field:
    return _field(help, lambda name: name in names, f"one of {', '.join(names)}")


def _number(help: str, least: int, most: float = math.inf) -> dataclasses.Field:
    expected = f"{least} or more" if most == math.inf else f"{least} to {most:,}"
    return _field(help, lambda number: least <= number <= most, expected)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model, its data and its training options. A plan adds nodes and GPUs."""

    method: str = _one_of("the objective, with or without the class loss", METHODS)
    model: str = _field("OpenCLIP's --model: a name, local-dir:FOLDER, hf-hub:REPO or a JSON file")
    data: str = _field("name of the data set")
    shards: str = _field(
        "default of --data: a brace pattern of shards, or a table (.csv, .tsv); {seed} is the seed"
    )
    data_samples: int = _number(
        "number of pairs in the data set; for a table, its rows are counted", 1, 10**13
    )
    samples: int = _number(
        "total samples seen: a number, or passes over the data set, such as '20 passes'", 1, 10**13
    )
    global_batch_size: int = _number(
        "samples per step, over all GPUs and accumulated batches", 1, 10**9
    )
    lr: float = _field("peak learning rate", lambda x: 0 < x < math.inf, "a number above 0")
    warmup: int = _number("steps of linear warm-up", 0)
    schedule: str = _one_of("learning rate schedule after the warm-up", SCHEDULES)
    beta1: float = _field("AdamW's β1", lambda x: 0 <= x < 1, "a number from 0 to below 1")
    beta2: float = _field("AdamW's β2", lambda x: 0 <= x < 1, "a number from 0 to below 1")
    eps: float = _field("AdamW's ε", lambda x: 0 < x < math.inf, "a number above 0")
    wd: float = _field("weight decay", lambda x: 0 <= x < math.inf, "0 or more")
    precision: str = _field("OpenCLIP's --precision")
    seed: int = _number("random seed of the weights and of the data order", 0)
    slices: int = _number(
        "slices per pass over the shards, with a checkpoint after each; 1 for a table", 1, 10**9
    )
    workers: int = _number("data-loading processes per GPU", 0)
    flags: Mapping = _field(
        "OpenCLIP's other flags, without dashes; {seed} in val-data is replaced by the seed"
    )
    superclip: Mapping | None = _field(
        "the flags of --superclip, by the names below; required for methods with the class loss",
        default=None,
    )
    paper: Mapping | None = _field(
        "source, read_off (whether read off a figure) and values; absent if the paper has no "
        "such run",
        default=None,
    )
    chosen: Mapping = _field(
        "the reason for every value that neither the paper nor the released configuration gives"
    )
    note: str | None = _field("remarks about this run", default=None)
    name: str = ""
    file: str = dataclasses.field(default="", compare=False)  # for messages
    # as given: "20 passes"
    values: dict = dataclasses.field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def of(values: dict, file: str, name: str) -> "Recipe":
        """Returns the recipe with the values of a file; InputError, with file and field, for
        invalid ones."""
        for field in values:
            if field not in FIELDS:
                run = (
                    "; superclip recipes NAME prints one run as a recipe"
                    if field in ("base", "runs")
                    else ""
                )
                raise InputError(
                    f"{file}: there is no field '{field}'; a recipe's fields are "
                    f"{', '.join(FIELDS)}{run}"
                )
        for field in REQUIRED:
            if field not in values:
                raise InputError(
                    f"{file}: {field} is missing; a recipe needs {', '.join(REQUIRED)}"
                )
        typed = {
            field: _typed(field, value, file)
            for field, value in _with_samples(values, file).items()
        }
        seed = f"{typed['seed']}"
        typed["shards"] = typed["shards"].replace("{seed}", seed)
        val_data = typed["flags"].get("val-data")
        if isinstance(val_data, str):
            val_data = val_data.replace("{seed}", seed)
            typed["flags"] = {**typed["flags"], "val-data": val_data}
        recipe = Recipe(**typed, name=name, file=file, values=values)
        check(RULES, recipe)
        return recipe

    def as_dict(self) -> dict:
        return {name: value for name in FIELDS if (value := getattr(self, name)) is not None}

    @property
    def text(self) -> str:
        """The complete recipe as YAML."""
        text = io.StringIO()
        yaml = YAML()
        yaml.width = 1000
        yaml.dump({name: self.values[name] for name in FIELDS if name in self.values}, text)
        return text.getvalue()

    @property
    def set_values(self) -> dict:
        """The values of the fields that were given with --set."""
        values = {}
        for key in (key for key, why in self.chosen.items() if why == GIVEN):
            name, _, inner = key.partition(".")
            value = getattr(self, name, None)
            values[key] = (value or {}).get(inner) if inner else value
        return values

    @property
    def columns(self) -> Columns:
        """The columns of the recipe's tables."""
        return Columns(
            *(str(self.flags.get(*flag)) for flag in zip(COLUMN_FLAGS, Columns(), strict=True))
        )

    @property
    def caption_config(self) -> Config:
        """The options that select the captions."""
        options = self.superclip or {}
        return Config(**{name: options[name] for name in CAPTION_FIELDS if name in options})


FIELDS = {field.name: field for field in dataclasses.fields(Recipe) if field.metadata}
REQUIRED = [name for name, field in FIELDS.items() if field.default is dataclasses.MISSING]
CONFIG_FIELDS = {field.name: field for field in dataclasses.fields(Config)}
GIVEN = "given with --set"  # the reason for a value
KINDS = {int: "an integer", float: "a number", str: "a string", dict: "a mapping"}
WORDS = ("chosen", "paper", "note")  # fields that do not affect training
# fields of `superclip` that select the captions
CAPTION_FIELDS = ("captions", "long_caption", "missing_long")
OPTIONS = {  # fields with another name than their option
    "data_samples": "train_sz",
    "shards": "train_data",
    "slices": "superclip_slices",
}
COLUMN_FLAGS = ("csv-separator", "csv-img-key", "csv-caption-key")  # in the order of Columns

# OpenCLIP's flags that a plan derives from the recipe's other fields and the machines, or that a
# run sets.
RESERVED = (
    "model",
    "train-data",
    "dataset-type",
    "train-num-samples",
    "batch-size",
    "accum-freq",
    "epochs",
    "lr",
    "beta1",
    "beta2",
    "eps",
    "wd",
    "warmup",
    "lr-scheduler",
    "precision",
    "seed",
    "workers",
    "device",
    "logs",
    "name",
    "resume",
    "dataset-resampled",
    "horovod",
    "save-frequency",
    "save-most-recent",
    "delete-previous-checkpoint",
    "remote-sync",
    "val-fraction",
)


def changes_scores(key: str) -> bool:
    """Returns whether a field (`lr`, `flags.NAME`, `superclip.NAME`) changes the mean of a score
    over seeds."""
    option = OPTIONS.get(key, key).removeprefix("flags.").replace("superclip.", "superclip_")
    return effect_of(option.replace("-", "_")).changes_scores


def kind_of(field: str) -> type:
    """Returns the type of a field: int, float, str, or dict for mappings."""
    kind = FIELDS[field].type
    return str if field == "note" else kind if kind in (int, float, str) else dict


def _wrong_superclip(recipe: Recipe) -> str:
    """Returns what is wrong in `superclip`, or ""; a frequency file need not exist on this
    machine."""
    options = recipe.superclip or {}
    for field, value in options.items():
        if field not in CONFIG_FIELDS:
            return f"superclip has no {field}; it has {', '.join(CONFIG_FIELDS)}"
        kind = CONFIG_FIELDS[field].type
        if isinstance(value, bool) != (kind is bool) or not isinstance(
            value, (int, float) if kind is float else kind
        ):
            return f"superclip.{field} is {value!r}; expected a {kind.__name__}"
    idf = options.get("idf", "online")
    try:
        Config(**{**options, "idf": "online" if is_idf_file(idf) else idf})
    except InputError as error:
        return f"superclip: {error}"
    return ""


RULES = [
    *(
        Rule(
            f"{{file}}: {name} is {{{name}!r}}; expected {field.metadata['expected']}",
            lambda recipe, name=name, holds=field.metadata["holds"]: (
                not holds(getattr(recipe, name))
            ),
        )
        for name, field in FIELDS.items()
        if field.metadata["holds"]
    ),
    Rule(
        "{file}: samples is {samples:,}; expected at least one global batch, {global_batch_size:,}",
        lambda recipe: recipe.samples < recipe.global_batch_size,
    ),
    Rule(
        "{file}: flags contains {found[0]}; expected only flags of OpenCLIP that neither a "
        "field of the recipe nor the run sets",
        lambda recipe: [
            flag
            for flag in map(str, recipe.flags)
            if flag in RESERVED or not re.match("(?!superclip)[a-z]", flag)
        ],
    ),
    Rule(
        "{file}: OpenCLIP ignores flags.pretrained with model {model}, so {method} would not "
        "start from {flags[pretrained]}: use --set model={found}",
        lambda recipe: (
            recipe.flags.get("pretrained")
            and recipe.superclip is None
            and model_for_pretrained(recipe.model)
        ),
    ),
    *(
        Rule(
            f"{{file}}: flags.{flag} is {{found[0]}}, which contradicts method {{method}}",
            lambda recipe, flag=flag, objective=objective: (
                [recipe.flags.get(flag, False)]
                if bool(recipe.flags.get(flag))
                != (recipe.method.removeprefix("super") == objective)
                else []
            ),
        )
        for objective, flag in (("siglip", "siglip"), ("flip", "force-patch-dropout"))
    ),
    Rule("{file}: {found}", _wrong_superclip),
    Rule(
        "{file}: method is {method}; expected superclip with a weight above 0 for the methods "
        "with the class loss, and no superclip, or weight 0 to select the captions only, for "
        "the others",
        lambda recipe: (
            recipe.method.startswith("super")
            != bool((recipe.superclip or {"weight": 0}).get("weight", 1))
        ),
    ),
    Rule(
        "{file}: paper is {paper}; expected source, read_off and values, a mapping",
        lambda recipe: (
            recipe.paper
            and not (
                recipe.paper.keys() == {"source", "read_off", "values"}
                and isinstance(recipe.paper["values"], dict)
            )
        ),
    ),
    Rule(
        "{file}: flags.fsdp-checkpoint is sharded, but superclip run only supports single-file "
        "checkpoints: leave it out",
        lambda recipe: recipe.flags.get("fsdp-checkpoint") == "sharded",
    ),
]


def _with_samples(values: dict, file: str) -> dict:
    """Returns the values with passes over the data set ("20 passes") converted to a number of
    samples."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) passes", str(values["samples"]))
    if not found:
        if "pass" in str(values["samples"]):
            raise InputError(
                f"{file}: samples is {values['samples']!r}; expected a number, or passes: '20 "
                "passes'"
            )
        return values
    return {
        **values,
        "samples": round(float(found[1]) * _typed("data_samples", values["data_samples"], file)),
    }


def _typed(field: str, value, file: str):
    """Returns the value as the field's type."""
    kind = kind_of(field)
    if value is None and field not in REQUIRED:
        return None
    try:
        if isinstance(value, bool) or (kind in (str, dict) and not isinstance(value, kind)):
            raise ValueError
        if kind is int and not isinstance(value, int):
            number = float(value)
            if number != int(number):
                raise ValueError
            return int(number)
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{file}: {field} is {value!r}; expected {KINDS[kind]}") from None


def with_settings(values: dict, set_: Mapping[str, str]) -> dict:
    """Returns a recipe's values with those of `set_` (`lr`, `superclip.weight`); null removes a
    flag.

    `chosen` records each as given with --set. The paper's values are dropped if the run differs
    from the paper's.
    """
    values = copy.deepcopy(values)
    for key, value in set_.items():
        name, _, inner = key.partition(".")
        _check_key(key, value)
        if inner:
            _set_inner(values, name, inner, value)
        else:
            values[name] = _parsed(FIELDS[name], value)
        if name == "method":
            _set_class_loss(values)
        if isinstance(values.get("chosen"), dict):
            if changes_scores(key) and key not in values["chosen"]:
                values.pop("paper", None)
            values["chosen"][key] = GIVEN
    return values


def _check_key(key: str, value: str) -> None:
    """Raises InputError for a field of --set that does not exist."""
    name, _, inner = key.partition(".")
    if name not in FIELDS or name in WORDS:
        expected = ", ".join(field for field in FIELDS if field not in WORDS)
        problem = f"there is no field '{name}' to set; expected one of {expected}"
        raise InputError(f"--set {key}={value}: {problem}; OpenCLIP's other flags are flags.NAME")
    is_mapping = kind_of(name) is dict
    if bool(inner) != is_mapping:
        expected = f"{name}.KEY=VALUE" if is_mapping else f"{name}=VALUE"
        raise InputError(f"--set {key}={value}: expected --set {expected}")


def _set_inner(values: dict, name: str, inner: str, value: str) -> None:
    """Sets a field of a mapping; null removes a flag."""
    if not isinstance(values.get(name), dict):
        values[name] = {}
    field = CONFIG_FIELDS.get(inner) if name == "superclip" else None
    values[name][inner] = _parsed(field, value)
    if name == "flags" and values[name][inner] is None:
        del values[name][inner]


def _set_class_loss(values: dict) -> None:
    """Makes `superclip` that of a new method, which determines whether there is a class loss."""
    given = values["superclip"] if isinstance(values.get("superclip"), dict) else {}
    if str(values["method"]).startswith("super"):
        values["superclip"] = given or {"weight": 1.0, "idf": "online", "captions": "short"}
    elif given.get("captions", "short") == "short":
        values.pop("superclip", None)
    else:  # the same captions without the class loss
        kept = {name: given[name] for name in CAPTION_FIELDS if name in given}
        values["superclip"] = {"weight": 0, **kept}


def _parsed(field: dataclasses.Field | None, value: str):
    """Returns the value parsed as YAML, or unchanged if the field is text, such as a pattern or
    "1.0"."""
    if field is not None and field.type is str:
        return value
    try:
        return YAML(typ="safe", pure=True).load(value)
    except YAMLError:
        return value


def read_recipe(path_or_name: str, set_: Mapping[str, str] | None = None) -> Recipe:
    """Returns the recipe of a file, or a shipped recipe by its name with or without its folder.

    `set_` are new values of fields (`lr`, `superclip.weight`). Raises InputError, with file and
    field, for missing, unknown or invalid values.
    """
    path = Path(path_or_name)
    if path.is_file():
        file, values = path_or_name, read_yaml(path, "a recipe")
        # of a run's folder
        name = path.absolute().parent.name if path.name == "recipe.yaml" else path.stem
    else:
        file = _shipped_name(path_or_name)
        name, values = file.partition("/")[2], shipped_recipes()[file]
    if set_:
        values = with_settings(values, set_)
        file = f"{file} with --set {' '.join(set_)}"
    return Recipe.of(values, file, name)


def _shipped_name(name: str) -> str:
    """Returns the full name of a shipped recipe; InputError, with similar names, for another
    one."""
    short_names = {full: full.partition("/")[2] for full in shipped_recipes()}
    wanted = name.removesuffix(".yaml").removeprefix("recipes/")
    found = [full for full, short in short_names.items() if wanted in (full, short)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"there are several recipes '{name}': give one of {', '.join(found)}")
    near = difflib.get_close_matches(wanted, [*short_names, *short_names.values()])
    similar = f"; similar: {', '.join(dict.fromkeys(near))}" if near else ""
    raise InputError(
        f"there is no file and no recipe '{name}'{similar}; superclip recipes lists all"
    )


@functools.cache
def shipped_recipes() -> dict[str, dict]:
    """Returns the values of every shipped recipe by its full name, FILE/RUN.

    A file contains the common fields (`base`) and those of each run (`runs`). A run with `like`
    also inherits the fields of that run, except the paper's values. Mappings are merged by key;
    null removes a field. The base's `superclip` only applies to methods with the class loss.
    """
    recipes = {}
    for file in sorted(shipped_folder("recipes").glob("*.yaml")):
        content = read_yaml(file, "a file of recipes")
        layers: dict[str, list[dict]] = {}  # of each run: those that it inherits, and its own
        for name, run in content["runs"].items():
            below = layers.get(run.pop("like", ""), [])
            layers[name] = [*(_without(layer, "paper") for layer in below), run]
            base = content["base"]
            if not functools.reduce(_merged, layers[name])["method"].startswith("super"):
                chosen = [field for field in base["chosen"] if field.startswith("superclip.")]
                base = _without(base, "superclip")
                base["chosen"] = _without(base["chosen"], *chosen)
            recipes[f"{file.stem}/{name}"] = functools.reduce(_merged, layers[name], base)
    return recipes


def _without(values: dict, *names: str) -> dict:
    return {name: value for name, value in values.items() if name not in names}


def _merged(below: dict, above: dict) -> dict:
    """Returns the values of both, merging mappings by key; null removes a field."""
    merged = dict(below)
    for key, value in above.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            inner = merged.get(key)
            merged[key] = _merged(inner if isinstance(inner, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def read_yaml(file: Path, what: str) -> dict:
    """Returns the mapping in a YAML file; InputError, with the line, for other contents."""
    try:
        values = YAML(typ="safe", pure=True).load(file.read_text())
    except (YAMLError, OSError, UnicodeDecodeError) as error:
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        problem = f"{error.problem} in line {mark.line + 1}" if mark else reason(error)
        raise InputError(f"{file} is not a readable YAML file: {problem}") from None
    if not isinstance(values, dict):
        raise InputError(f"{file}: expected a YAML mapping, {what}")
    return values
