"""Recipes in files: found by name, read, and changed by --set."""

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path

import yaml

from ..config import Config
from ..errors import InputError
from ..shipped_files import shipped_folder
from .recipe import FIELDS, KINDS, REQUIRED, STILL_THE_PAPERS, Recipe
from .recipe_rules import check
from .yaml_text import parse


def recipe_files() -> list[Path]:
    """Returns the shipped recipes, of the installed package or of the checkout."""
    return sorted(shipped_folder("recipes").glob("*/*.yaml"))


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
        values = parse(text)
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a YAML mapping of {', '.join(REQUIRED)}")
    for key, value in (set_ or {}).items():
        _set(values, key, value)
    file = f"{path} with --set {' '.join(set_)}" if set_ else str(path)
    recipe = _recipe(values, file)
    check(recipe, file)
    return dataclasses.replace(recipe, name=path.stem, source="" if set_ else text)


def _set(values: dict, key: str, value: str) -> None:
    """Puts the value of --set key=value into `values`, and its reason into `chosen`.

    Takes the paper's values away where the run is no longer the paper's.
    """
    name, _, inner = key.partition(".")
    if name not in FIELDS or name in ("chosen", "paper"):
        expected = ", ".join(field for field in FIELDS if field not in ("chosen", "paper"))
        raise InputError(f"--set {key}={value}: there is no field '{name}' to set; expected one of {expected}")
    if bool(inner) != _is_mapping(name):
        expected = f"{name}.KEY=VALUE" if _is_mapping(name) else f"{name}=VALUE"
        raise InputError(f"--set {key}={value}: expected --set {expected}")
    parsed = _parsed(name, inner, value)
    if inner:
        values[name] = {**(values.get(name) or {}), inner: parsed}
    else:
        values[name] = parsed
    chosen = values.get("chosen")
    if isinstance(chosen, dict):
        if key not in STILL_THE_PAPERS and key not in chosen:
            values["paper"] = None
        chosen[key] = "given with --set"


def _parsed(name: str, inner: str, value: str):
    """Returns what YAML makes of the value, and the value itself where the field is text: a pattern, "off", "1.0"."""
    of_config = {field.name: field.type for field in dataclasses.fields(Config)} if name == "superclip" else {}
    if (of_config.get(inner) if inner else FIELDS[name].type) is str:
        return value
    try:
        return parse(value)
    except yaml.YAMLError:
        return value


def _is_mapping(name: str) -> bool:
    return FIELDS[name].type not in (int, float, str)


def _recipe(values: dict, file: str) -> Recipe:
    for name in values:
        if name not in FIELDS:
            raise InputError(f"{file}: there is no field '{name}'; a recipe's fields are {', '.join(FIELDS)}")
    for name in REQUIRED:
        if name not in values:
            raise InputError(f"{file}: {name} is missing; a recipe holds {', '.join(REQUIRED)}")
    return Recipe(**{name: _typed(name, value, file) for name, value in values.items()})


def _typed(name: str, value, file: str):
    """Returns the value in the field's type. Numbers may be text: YAML 1.1 takes 1e-3 for a word."""
    kind = dict if _is_mapping(name) else FIELDS[name].type
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
