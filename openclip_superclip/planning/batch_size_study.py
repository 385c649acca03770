"""The recipes of one study: the same name, METHOD_MODEL_SAMPLES_bsBATCH, with other methods and batch sizes."""

import re
from pathlib import Path

from ..errors import InputError
from .recipe_file import find_recipe

NAME = re.compile(r"(?P<method>[^_]+)_(?P<study>.+)_bs(?P<batch>\w+)")


def study_recipes(recipe: str, batches: list[str], methods: list[str]) -> list[str]:
    """Returns the files of a recipe's study, for methods × batches, its own method where none is given."""
    path = find_recipe(recipe)
    parts = _parts(path)
    wanted = [
        path.with_name(f"{method}_{parts['study']}_bs{batch}.yaml")
        for method in methods or [parts["method"]]
        for batch in batches
    ]
    missing = [other for other in wanted if not other.exists()]
    if missing:
        there = ", ".join(sorted(other.stem for other in path.parent.glob(f"*_{parts['study']}_bs*.yaml")))
        raise InputError(f"--array, --methods: there is no recipe {missing[0]}; beside it are {there}")
    return list(map(str, wanted))


def study_name(recipe: str) -> str:
    """Returns what the recipes of a study have in common."""
    return _parts(find_recipe(recipe))["study"]


def _parts(path: Path) -> re.Match:
    parts = NAME.fullmatch(path.stem)
    if not parts:
        raise InputError(f"--array: {path.name} is not named METHOD_MODEL_SAMPLES_bsBATCH.yaml")
    return parts
