"""The fields of a recipe that --set changes, in the text of its file."""

import dataclasses
import io
from collections.abc import Mapping

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.comments import CommentedMap

from ..config import Config
from ..errors import InputError
from .recipe import FIELDS, STILL_THE_PAPERS, is_mapping


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
