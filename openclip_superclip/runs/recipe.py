"""What a recipe must say: its fields, their types, and what they hold each other to."""

import dataclasses
import difflib
import io
import math
import re
from collections.abc import Mapping
from pathlib import Path

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError

from ..checkpoints.model_files import instead_of_passing_over
from ..config import Config, is_idf_file
from ..errors import InputError, reason
from ..files import shipped_folder


def _field(help: str):
    return dataclasses.field(metadata={"help": help})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained, on what and how; which nodes and GPUs do it is a plan's to say."""

    method: str = _field("the objective, and whether the class loss is beside it")
    model: str = _field("OpenCLIP's --model: a name, local-dir:FOLDER, hf-hub:REPO or a JSON file")
    data: str = _field("what the data set is called")
    shards: str = _field("--train-data where a user gives none: a brace pattern of shards, or a table (.csv, .tsv)")
    data_samples: int = _field("pairs in the data set; the rows of a table are counted instead")
    samples: int = _field("seen in all: a number, or passes over the data set, as '20 passes'")
    global_batch_size: int = _field("samples of a step, over all GPUs and accumulated batches")
    lr: float = _field("the learning rate at its peak")
    warmup: int = _field("steps in which the learning rate rises")
    schedule: str = _field("how it falls afterwards")
    beta1: float = _field("of AdamW")
    beta2: float = _field("of AdamW")
    eps: float = _field("of AdamW")
    wd: float = _field("weight decay")
    precision: str = _field("OpenCLIP's --precision")
    seed: int = _field("of the weights and of the order of the data")
    slices: int = _field("that a pass over shards is cut into, a checkpoint after each; 1 for a table")
    workers: int = _field("data-loading processes of each GPU's process")
    flags: dict = dataclasses.field(metadata={"help": "OpenCLIP's other flags, without the dashes"})
    superclip: dict | None = dataclasses.field(
        metadata={"help": "the flags of --superclip, by the names below; a method with the class loss needs it"},
        default=None,
    )
    paper: dict | None = dataclasses.field(
        metadata={"help": "source, read_off (off a figure?) and values; absent where the paper has no such run"},
        default=None,
    )
    chosen: dict = dataclasses.field(
        metadata={"help": "why, for every value that neither the paper nor the released configuration gives"}
    )
    name: str = ""  # of the file
    text: str = dataclasses.field(default="", repr=False)  # the file's, with what was set

    def as_dict(self) -> dict:
        """Returns what a recipe's file holds."""
        return {name: value for name in FIELDS if (value := getattr(self, name)) is not None}

    @property
    def long_caption(self) -> str:
        """Where a sample's long caption is; "" where the recipe reads none."""
        options = self.superclip or {}
        return options.get("long_caption", "") if options.get("captions", "short") != "short" else ""


FIELDS = {field.name: field for field in dataclasses.fields(Recipe) if field.name not in ("name", "text")}


STILL_THE_PAPERS = ("seed", "data_samples")  # runs with others are compared with its values, as with what is chosen


REQUIRED = [name for name, field in FIELDS.items() if field.default is dataclasses.MISSING]


KINDS = {int: "a whole number", float: "a number", str: "text", dict: "a mapping"}


def is_mapping(field: str) -> bool:
    """Returns whether a field holds fields of its own."""
    return FIELDS[field].type not in (int, float, str)


METHODS = {  # with the paper's names
    "clip": "CLIP", "superclip": "SuperCLIP", "siglip": "SigLIP", "supersiglip": "SuperSigLIP", "flip": "FLIP",
    "superflip": "SuperFLIP",
}  # fmt: skip


SCHEDULES = ("cosine", "const", "const-cooldown")


MEASURES = (  # in percent, but for nyuv2_rmse and llava_mme
    "imagenet_zero_shot", "imagenet_v2_zero_shot", "coco_text_to_image_r1", "flickr30k_text_to_image_r1",
    "coco_image_to_text_r1", "flickr30k_image_to_text_r1", "text_to_image_r1_average", "image_to_text_r1_average",
    "imagenet_linear_probe", "average_of_38", "pascal_miou", "ade20k_miou", "nyuv2_rmse", "llava_vqav2", "llava_gqa",
    "llava_vizwiz", "llava_textvqa", "llava_sqa", "llava_mmbench", "llava_mme", "llava_pope",
)  # fmt: skip


CONFIG_FIELDS = {field.name: field for field in dataclasses.fields(Config)}


# OpenCLIP's flags that a plan makes of the recipe's other fields and of the machines, or that a run sets.
TAKEN = (
    "model", "train-data", "dataset-type", "train-num-samples", "batch-size", "accum-freq", "epochs", "lr", "beta1",
    "beta2", "eps", "wd", "warmup", "lr-scheduler", "precision", "seed", "workers", "device", "logs", "name", "resume",
    "dataset-resampled", "horovod", "save-frequency", "save-most-recent", "delete-previous-checkpoint", "remote-sync",
)  # fmt: skip


VALUES = {  # what each field can hold, and that in words
    **dict.fromkeys(("data_samples", "samples"), (lambda n: 1 <= n <= 10**13, "1 to 10,000,000,000,000")),
    **dict.fromkeys(("global_batch_size", "slices"), (lambda n: 1 <= n <= 10**9, "1 to 1,000,000,000")),
    **dict.fromkeys(("warmup", "workers", "seed"), (lambda n: n >= 0, "0 or more")),
    **dict.fromkeys(("lr", "eps"), (lambda x: 0 < x < math.inf, "a number above 0")),
    **dict.fromkeys(("beta1", "beta2"), (lambda x: 0 <= x < 1, "a number from 0 to below 1")),
    "wd": (lambda x: 0 <= x < math.inf, "0 or more"),
    "method": (lambda name: name in METHODS, f"one of {', '.join(METHODS)}"),
    "schedule": (lambda name: name in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
}


def checked_recipe(values: dict, file: str) -> Recipe:
    """Returns the recipe of a file's values; InputError, naming file and field, for what is missing or cannot be."""
    for name in values:
        if name not in FIELDS:
            raise InputError(f"{file}: there is no field '{name}'; a recipe's fields are {', '.join(FIELDS)}")
    for name in REQUIRED:
        if name not in values:
            raise InputError(f"{file}: {name} is missing; a recipe holds {', '.join(REQUIRED)}")
    recipe = Recipe(**{name: _typed(name, value, file) for name, value in _with_samples(values, file).items()})
    _check(recipe, file)
    return recipe


def _with_samples(values: dict, file: str) -> dict:
    """Returns the values with a number of samples where they say passes over the data set: "20 passes"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) passes", str(values["samples"]))
    if not found:
        if "pass" in str(values["samples"]):
            raise InputError(f"{file}: samples is {values['samples']!r}; expected a number, or such as '20 passes'")
        return values
    return {**values, "samples": round(float(found[1]) * _typed("data_samples", values["data_samples"], file))}


def _typed(name: str, value, file: str):
    """Returns the value in the field's type."""
    kind = dict if is_mapping(name) else FIELDS[name].type
    if value is None and name not in REQUIRED:
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
        raise InputError(f"{file}: {name} is {value!r}; expected {KINDS[kind]}") from None


def _check(recipe: Recipe, file: str) -> None:
    """Raises InputError, naming file and field, for what cannot be or contradicts itself."""
    for field, (holds, expected) in VALUES.items():
        value = getattr(recipe, field)
        if not holds(value):
            raise InputError(f"{file}: {field} is {value!r}; expected {expected}")
    if recipe.samples < recipe.global_batch_size:
        raise InputError(f"{file}: samples is {recipe.samples:,}; expected a global batch of them or more")
    _check_flags(recipe, file)
    _check_superclip(recipe, file)
    _check_paper(recipe.paper, file)


def _check_flags(recipe: Recipe, file: str) -> None:
    for flag in recipe.flags:
        if not isinstance(flag, str):
            raise InputError(f"{file}: flags holds {flag!r}; expected OpenCLIP's flags, without the dashes")
        if flag in TAKEN or flag.startswith("superclip"):
            raise InputError(
                f"{file}: flags holds {flag}, which follows from the recipe's other fields or is the run's to say"
            )
    instead = instead_of_passing_over(recipe.model)
    if instead and recipe.flags.get("pretrained") and recipe.superclip is None:
        raise InputError(
            f"{file}: flags.pretrained stands beside model {recipe.model}, where OpenCLIP passes over it: "
            f"{recipe.method} would not start from {recipe.flags['pretrained']}; give --set model={instead}"
        )
    objective = recipe.method.removeprefix("super")
    siglip, dropout = recipe.flags.get("siglip", False), recipe.flags.get("force-patch-dropout", 0)
    if (objective == "siglip") != bool(siglip):
        raise InputError(f"{file}: method is {recipe.method}, and flags.siglip is {siglip}: they go together")
    if (objective == "flip") != bool(dropout):
        raise InputError(
            f"{file}: method is {recipe.method}, and flags.force-patch-dropout is {dropout}: they go together"
        )


def _check_superclip(recipe: Recipe, file: str) -> None:
    options = recipe.superclip
    for field, value in (options or {}).items():
        if field not in CONFIG_FIELDS:
            raise InputError(f"{file}: superclip has no {field}; it has {', '.join(CONFIG_FIELDS)}")
        kind = CONFIG_FIELDS[field].type
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise InputError(f"{file}: superclip.{field} is {value!r}; expected a {kind.__name__}")
    if recipe.method.startswith("super"):
        if options is None or options.get("weight", 1.0) == 0:
            raise InputError(f"{file}: method is {recipe.method}, which needs superclip: with a weight above 0")
    elif options is not None and options.get("weight", 1.0) != 0:
        raise InputError(
            f"{file}: method is {recipe.method}; leave superclip out, or give it weight 0 to choose the captions alone"
        )
    if options is not None:
        idf = options.get("idf", "online")
        try:  # a file of counts need only be there where the run is
            Config(**{**options, "idf": "online" if is_idf_file(idf) else idf})
        except InputError as error:
            raise InputError(f"{file}: superclip: {error}") from None


def _check_paper(paper: dict | None, file: str) -> None:
    if paper is None:
        return
    if set(paper) != {"source", "read_off", "values"} or not isinstance(paper["values"], dict):
        raise InputError(f"{file}: paper holds {', '.join(paper)}; expected source, read_off and the mapping values")
    for measure, value in paper["values"].items():
        if measure not in MEASURES or isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(
                f"{file}: paper.values holds {measure}: {value}; expected a number for one of " + ", ".join(MEASURES)
            )


def with_settings(text: str, set_: Mapping[str, str]) -> str:
    """Returns a recipe's YAML with the values of `set_` (`lr`, `superclip.weight`), its comments kept.

    `chosen` says of each that it was given with --set. The paper's values go where the run is no longer the paper's.
    Raises InputError for a field that cannot be set, YAMLError for a text that is no YAML.
    """
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 1000  # a line stays a line
    recipe = yaml.load(text)
    if not isinstance(recipe, CommentedMap):
        return text
    for key, value in set_.items():
        _set(recipe, key, value)
    written = io.StringIO()
    yaml.dump(recipe, written)
    return f"# With --set {', '.join(set_)}.\n{written.getvalue()}"


def _set(recipe: CommentedMap, key: str, value: str) -> None:
    name, _, inner = key.partition(".")
    if name not in FIELDS or name in ("chosen", "paper"):
        expected = ", ".join(field for field in FIELDS if field not in ("chosen", "paper"))
        raise InputError(f"--set {key}={value}: there is no field '{name}' to set; expected one of {expected}")
    if bool(inner) != is_mapping(name):
        expected = f"{name}.KEY=VALUE" if is_mapping(name) else f"{name}=VALUE"
        raise InputError(f"--set {key}={value}: expected --set {expected}")
    if name == "method":
        _set_method(recipe, value)
    elif not inner:
        recipe[name] = _parsed(name, inner, value)
    else:
        if not isinstance(recipe.get(name), CommentedMap):
            recipe[name] = CommentedMap()
        recipe[name][inner] = _parsed(name, inner, value)
    chosen = recipe.get("chosen")
    if isinstance(chosen, CommentedMap):
        if key not in STILL_THE_PAPERS and key not in chosen:
            recipe.pop("paper", None)
        chosen[key] = "given with --set"


def _set_method(recipe: CommentedMap, method: str) -> None:
    """Makes the recipe one of another method with the same objective: the baseline of a recipe, or the reverse.

    Its `superclip` comes and goes with it. SigLIP and FLIP have flags of their own, which recipe_rules holds it to.
    """
    recipe["method"] = method
    if not method.startswith("super"):
        recipe.pop("superclip", None)
    elif not recipe.get("superclip"):
        recipe["superclip"] = CommentedMap(weight=1.0, idf="online", captions="short")


def _parsed(name: str, inner: str, value: str):
    """Returns what YAML makes of the value, and the value itself where the field is text: a pattern, "1.0"."""
    of_config = {field.name: field.type for field in dataclasses.fields(Config)} if name == "superclip" else {}
    if (of_config.get(inner) if inner else FIELDS[name].type) is str:
        return value
    try:
        return YAML().load(value)
    except YAMLError:
        return value


def recipe_files() -> list[Path]:
    """Returns the shipped recipes, of the installed package or of the checkout."""
    return sorted(path for path in shipped_folder("recipes").glob("*/*.yaml") if path.parent.name != "studies")


def find_recipe(name: str) -> Path:
    """Returns the file of a path, or of a shipped recipe's name with or without its folder.

    Raises InputError where there is none or several.
    """
    if Path(name).is_file():
        return Path(name)
    known = {f"{path.parent.name}/{path.stem}": path for path in recipe_files()}
    wanted = name.removesuffix(".yaml").removeprefix("recipes/")
    found = {full: path for full, path in known.items() if wanted in (full, path.stem)}
    if len(found) > 1:
        raise InputError(f"there are several recipes '{name}': give one of {', '.join(found)}")
    if not found:
        near = difflib.get_close_matches(wanted, [*known, *(path.stem for path in known.values())])
        near_names = f"; near it: {', '.join(dict.fromkeys(near))}" if near else ""
        raise InputError(f"there is no file and no recipe '{name}'{near_names}; superclip recipes lists all")
    return next(iter(found.values()))


def read_recipe(path_or_name: str, set_: Mapping[str, str] | None = None) -> Recipe:
    """Returns the recipe of a file or a shipped name, with the fields of `set_` (`lr`, `superclip.weight`) changed.

    Raises InputError, naming file and field, for whatever is missing, unknown or cannot be.
    """
    path = find_recipe(path_or_name)
    try:
        text = path.read_text()
        if set_:
            text = with_settings(text, set_)
        values = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable YAML file: {_reason(error)}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a YAML mapping of {', '.join(REQUIRED)}")
    file = f"{path} with --set {' '.join(set_)}" if set_ else str(path)
    recipe = checked_recipe(values, file)
    return dataclasses.replace(recipe, name=path.stem, text=text)


def _reason(error: Exception) -> str:
    """Returns what is wrong with a file, and the line, in one line."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    return reason(error)
