"""Recipes in files: found by name and read."""

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.error import MarkedYAMLError

from ..errors import InputError
from ..shipped_files import shipped_folder
from .recipe import REQUIRED, Recipe
from .recipe_rules import checked_recipe
from .recipe_settings import with_settings


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
    return " ".join(str(error).split())
