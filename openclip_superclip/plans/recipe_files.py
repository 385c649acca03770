"""The recipes in files: shipped ones, each file with a base and several runs, and the user's; new
values for their fields (--set)."""

import dataclasses
import difflib
import functools
import shlex
from collections.abc import Mapping
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

from ..data.tar_shards import is_streamed
from ..errors import InputError, reason
from ..files import shipped_folder
from .recipe import (
    CAPTION_FIELDS,
    CONFIG_FIELDS,
    FIELDS,
    GIVEN,
    VAL_DATA,
    WORDS,
    Recipe,
    changes_scores,
    kind_of,
)


def read_recipe(path_or_name: str, set_: Mapping[str, str] | None = None) -> Recipe:
    """Returns the recipe of a file, or a shipped recipe by its name with or without its folder.

    `set_` are new values of fields (`lr`, `superclip.weight`). Raises InputError, with file and
    field, for missing, unknown or invalid values.
    """
    path = Path(path_or_name)
    if path.is_file():
        file = path_or_name
        values = read_yaml(path, "a recipe")
        # of a run's folder
        name = path.absolute().parent.name if path.name == "recipe.yaml" else path.stem
    else:
        file = _shipped_name(path_or_name)
        name = file.partition("/")[2]
        values = shipped_recipes()[file]
    if set_:
        values = with_settings(values, set_)
        file = f"{file} with --set {' '.join(set_)}"
    recipe = Recipe.of(values, file, name)
    if f"flags.{VAL_DATA}" not in (set_ or {}):
        refuse_streamed_validation(recipe)
    return recipe


def refuse_streamed_validation(recipe: Recipe) -> None:
    """Raises InputError if a file's validation data is a URL or a command, which only the user
    may give."""
    if is_streamed(recipe.val_data):
        setting = f"flags.{VAL_DATA}={recipe.val_data}"
        raise InputError(
            f"{recipe.file}: {VAL_DATA} is {recipe.val_data}, which a shell would run: if you "
            f"trust it, give it yourself, --set {shlex.quote(setting)}"
        )


def is_recipe(path_or_name: str) -> bool:
    """Returns whether there is a file or a shipped recipe, or several ones, of this name."""
    return Path(path_or_name).is_file() or bool(_with_name(path_or_name))


def _with_name(name: str) -> list[str]:
    """Returns the full names of the shipped recipes of a name with or without its folder."""
    wanted = name.removesuffix(".yaml").removeprefix("recipes/")
    return [full for full in shipped_recipes() if wanted in (full, full.partition("/")[2])]


def _shipped_name(name: str) -> str:
    """Returns the full name of a shipped recipe; InputError, with similar names, for another
    one."""
    found = _with_name(name)
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"there are several recipes '{name}': give one of {', '.join(found)}")
    names = dict.fromkeys(part for full in shipped_recipes() for part in (full, *full.split("/")))
    near = difflib.get_close_matches(name, names)
    similar = f"; similar: {', '.join(near)}" if near else ""
    raise InputError(f"there is no file and no recipe '{name}'{similar}; superclip plan lists all")


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
            before = merged.get(key)
            merged[key] = _merged(before if isinstance(before, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def read_yaml(file: Path, what: str) -> dict:
    """Returns the mapping in a YAML file; InputError, with the line, for other contents."""
    try:
        values = _safe_yaml(file.read_text(encoding="utf-8"))
    except (YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)  # of most, but not all of these errors
        problem = f"{error.problem} in line {mark.line + 1}" if mark else reason(error)
        raise InputError(f"{file} is not a readable YAML file: {problem}") from None
    if not isinstance(values, dict):
        raise InputError(f"{file}: expected a YAML mapping, {what}")
    return values


def _safe_yaml(text: str) -> object:
    """Returns the content of YAML without Python's tags."""
    return YAML(typ="safe", pure=True).load(text)


def with_settings(values: dict, set_: Mapping[str, str]) -> dict:
    """Returns a recipe's values with those of `set_` (`lr`, `superclip.weight`); null removes
    one.

    `chosen`, if there is one, records each as given with --set. The paper's scores are dropped if
    the run differs from the paper's; fields in `chosen` are not given in the paper.
    """
    for key, text in set_.items():
        name, _, inner = key.partition(".")
        _check_key(key, text)
        field = FIELDS[name]
        if name == "superclip":
            field = CONFIG_FIELDS.get(inner, field)
        value = _parsed(field, text)
        values = _merged(values, {name: {inner: value} if inner else value})
        if name == "method":
            _set_class_loss(values)
        if isinstance(values.get("chosen"), dict):
            if changes_scores(key) and key not in values["chosen"]:
                values.pop("paper", None)
            values = _merged(values, {"chosen": {key: GIVEN}})
    return values


def _check_key(key: str, value: str) -> None:
    """Raises InputError for a field of --set that does not exist."""
    name, _, inner = key.partition(".")
    if name not in FIELDS or name in WORDS:
        expected = ", ".join(field for field in FIELDS if field not in WORDS)
        problem = f"there is no field '{name}' to set; expected one of {expected}"
        if name == "epochs":
            raise InputError(
                f"--set {key}={value}: a recipe has no epochs: give --set 'samples={value} passes'"
            )
        raise InputError(f"--set {key}={value}: {problem}; OpenCLIP's other flags are flags.NAME")
    if name == "superclip" and inner and inner not in CONFIG_FIELDS:
        raise InputError(
            f"--set {key}={value}: superclip has no {inner}; it has {', '.join(CONFIG_FIELDS)}"
        )
    is_mapping = kind_of(name) is dict
    if bool(inner) != is_mapping:
        expected = f"{name}.KEY=VALUE" if is_mapping else f"{name}=VALUE"
        raise InputError(f"--set {key}={value}: expected --set {expected}")


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


def _parsed(field: dataclasses.Field, value: str):
    """Returns the value parsed as YAML, or unchanged if the field is text, such as a pattern or
    "1.0", or if the value of one of OpenCLIP's flags is text, such as a path with ` #`."""
    if field.type is str:
        return value
    try:
        parsed = _safe_yaml(value)
    except (YAMLError, ValueError):
        return value
    is_text = isinstance(parsed, dict) or (isinstance(parsed, str) and value[0] not in "'\"")
    return value.strip() if is_text and field.name == "flags" else parsed
