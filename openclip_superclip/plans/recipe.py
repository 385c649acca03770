"""Recipes: their fields, and the values that these may have."""

import dataclasses
import difflib
import io
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from ruamel.yaml import YAML

from ..checkpoints.model_configurations import model_for_pretrained
from ..data.tables import Columns
from ..errors import InputError
from ..flags import Config, is_idf_file
from ..option_table import effect_of
from ..removed import without_removed

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
    return _field(help, lambda number: least <= number <= most and number < math.inf, expected)


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
    wd: float = _number("weight decay", 0)
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
    # lines about fields of earlier versions, which are ignored
    removed: list[str] = dataclasses.field(default_factory=list, repr=False, compare=False)

    @staticmethod
    def of(values: dict, file: str, name: str) -> "Recipe":
        """Returns the recipe with the values of a file; InputError, with file and field, for
        invalid ones."""
        removed = []
        if isinstance(values.get("superclip"), dict):
            options, removed = without_removed(values["superclip"], "superclip.")
            values = values | {"superclip": options}
        for field in values:
            if field not in FIELDS:
                near = difflib.get_close_matches(field, FIELDS, n=1)
                expected = f"did you mean {near[0]}?" if near else f"expected {', '.join(FIELDS)}"
                if field in ("like", "base", "runs"):
                    expected = "only files of this package have it: write out the recipe's fields"
                raise InputError(
                    f"{file}: there is no field '{field}'; {expected}; superclip plan NAME --yaml "
                    "prints one"
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
        seed = str(typed["seed"])
        typed["shards"] = typed["shards"].replace("{seed}", seed)
        val_data = typed["flags"].get(VAL_DATA)
        if isinstance(val_data, str):
            typed["flags"] = typed["flags"] | {VAL_DATA: val_data.replace("{seed}", seed)}
        recipe = Recipe(**typed, name=name, file=file, values=values, removed=removed)
        try:
            _check_values(recipe)
            _check_flags(recipe)
            _check_class_loss(recipe)
        except InputError as error:
            raise InputError(f"{file}: {error}") from None
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
    def columns(self) -> Columns:
        """The columns of the recipe's tables."""
        defaults = zip(COLUMN_FLAGS, Columns(), strict=True)
        return Columns(*(str(self.flags.get(flag, default)) for flag, default in defaults))

    @property
    def val_data(self) -> str | None:
        """OpenCLIP's --val-data."""
        data = self.flags.get(VAL_DATA)
        return str(data) if data else None

    @property
    def config(self) -> Config:
        """The options of the class loss, without a file of frequencies, which this machine may not
        have."""
        options = self.superclip or {}
        idf = options.get("idf", "online")
        return Config(**{**options, "idf": "online" if is_idf_file(idf) else idf})


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

# fields that are OpenCLIP's flags of the same names
SAME_FLAGS = ("lr", "warmup", "beta1", "beta2", "eps", "wd", "precision", "seed")
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
    *SAME_FLAGS,
    "lr-scheduler",
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


VAL_DATA = "val-data"  # of OpenCLIP's other flags, the one that names data


def changes_scores(key: str) -> bool:
    """Returns whether a field (`lr`, `flags.NAME`, `superclip.NAME`) changes the mean of a score
    over seeds."""
    option = OPTIONS.get(key, key).removeprefix("flags.").replace("superclip.", "superclip_")
    return effect_of(option.replace("-", "_")).changes_scores


def kind_of(field: str) -> type:
    """Returns the type of a field: int, float, str, or dict for mappings."""
    kind = FIELDS[field].type
    return str if field == "note" else kind if kind in (int, float, str) else dict


def _check_values(recipe: Recipe) -> None:
    for name, field in FIELDS.items():
        value = getattr(recipe, name)
        holds = field.metadata["holds"]
        if holds and not holds(value):
            raise InputError(f"{name} is {value!r}; expected {field.metadata['expected']}")
    if recipe.samples < recipe.global_batch_size:
        raise InputError(
            f"samples is {recipe.samples:,}; expected at least one global batch, "
            f"{recipe.global_batch_size:,}"
        )
    paper = recipe.paper
    if paper and not (
        paper.keys() == {"source", "read_off", "values"}
        and isinstance(paper["values"], dict)
        and all(isinstance(name, str) for name in paper["values"])
    ):
        raise InputError(f"paper is {paper}; expected source, read_off and values, by name")


def _check_flags(recipe: Recipe) -> None:
    flags = recipe.flags
    model = recipe.model
    for flag, value in flags.items():
        if not re.fullmatch(r"(?!superclip)[a-z][\w-]*", str(flag)) or _is_reserved(flag):
            raise InputError(
                f"flags contains {flag}; expected only flags of OpenCLIP, in full, that neither a "
                "field of the recipe nor the run sets"
            )
        if isinstance(value, list) and any(str(part).startswith("--") for part in value):
            raise InputError(f"flags.{flag} is {value}; expected no other flags in it")
    if isinstance(flags.get(VAL_DATA), list | dict):
        raise InputError(f"flags.{VAL_DATA} is {flags[VAL_DATA]}; expected one pattern or table")
    if Path(model).is_dir():
        raise InputError(f"model is {model}, a folder: expected local-dir:{model}")
    instead = model_for_pretrained(model)
    if flags.get("pretrained") and recipe.superclip is None and instead:
        raise InputError(
            f"OpenCLIP ignores flags.pretrained with model {model}, so {recipe.method} would not "
            f"start from {flags['pretrained']}: use --set model={instead}"
        )
    objective = recipe.method.removeprefix("super")
    for method, flag in (("siglip", "siglip"), ("flip", "force-patch-dropout")):
        if bool(flags.get(flag)) != (objective == method):
            raise InputError(
                f"flags.{flag} is {flags.get(flag, False)}, which contradicts method "
                f"{recipe.method}"
            )
    if flags.get("fsdp-checkpoint") == "sharded":
        raise InputError(
            "flags.fsdp-checkpoint is sharded, but superclip run only supports single-file "
            "checkpoints: leave it out"
        )


def _is_reserved(flag: str) -> bool:
    """Returns whether a flag, or one that it abbreviates, is not the recipe's to set."""
    return flag != VAL_DATA and any(name.startswith(flag) for name in (*RESERVED, VAL_DATA))


def _check_class_loss(recipe: Recipe) -> None:
    """Raises InputError for what is wrong in `superclip`; a frequency file need not exist on this
    machine."""
    options = recipe.superclip or {}
    for field, value in options.items():
        if field not in CONFIG_FIELDS:
            raise InputError(f"superclip has no {field}; it has {', '.join(CONFIG_FIELDS)}")
        kind = CONFIG_FIELDS[field].type
        if kind == float | None:
            kind = float
        expected = (int, float) if kind is float else kind
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, expected):
            raise InputError(f"superclip.{field} is {value!r}; expected a {kind.__name__}")
    try:
        _ = recipe.config
    except InputError as error:
        raise InputError(f"superclip: {error}") from None
    has_class_loss = bool(options and options.get("weight", 1))
    if recipe.method.startswith("super") != has_class_loss:
        raise InputError(
            f"method is {recipe.method}; expected, for a method with the class loss, superclip "
            "with a weight above 0, and for another method no superclip, or weight 0 to select "
            "only the captions"
        )


def _with_samples(values: dict, file: str) -> dict:
    """Returns the values with passes over the data set ("20 passes") converted to a number of
    samples."""
    samples = values["samples"]
    passes = re.fullmatch(r"(\d+(?:\.\d+)?) passes", str(samples))
    if not passes:
        if isinstance(samples, str) and re.search(r"%|[a-z]{2}", samples):
            raise InputError(
                f"{file}: samples is {samples!r}; expected a number, or passes: '20 passes'"
            )
        return values
    number = float(passes[1]) * _typed("data_samples", values["data_samples"], file)
    return values | {"samples": round(number) if number < math.inf else number}


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
