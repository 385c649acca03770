"""What a recipe must say: its fields, their types, and what they hold each other to."""

import dataclasses
import math
import re

from ..config import Config, is_idf_file
from ..errors import InputError
from ..model_files import instead_of_passing_over
from .recipe import FIELDS, KINDS, REQUIRED, Recipe, is_mapping

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
