"""superclip recipes: a table of all recipes, one complete recipe, or a description of the
fields."""

import json

from ..errors import InputError, Parser, no_effect
from ..plans.recipe import FIELDS, KINDS, METHODS, REQUIRED, Recipe, kind_of
from ..plans.recipe_files import read_recipe, shipped_recipes
from ..rendering import markdown_table
from .shared_options import add_switch

HEAD = ("recipe", "method", "model", "data", "batch", "samples", "the paper's value")


def main(argv: list[str]) -> int:
    parser = Parser(
        "recipes",
        "Lists the recipes for superclip plan, run and submit, or prints one of "
        "them as YAML. ≈: read off a figure.",
        "datacomp1b vit-b-16_512m",
    )
    parser.option(
        "words",
        "the name of a recipe, or words contained in its name",
        nargs="*",
        type=str.lower,
        metavar="WORD",
    )
    add_switch(parser, "--json", "print all fields as JSON")
    add_switch(parser, "--fields", "print the fields of a recipe, explained, in Markdown")
    options = parser.parse_args(argv)
    if options.words or options.json:
        no_effect(options, "WORD or --json", "fields")
    if options.fields:
        print(_fields_table())
        return 0
    found = {
        name: read_recipe(name)
        for name in shipped_recipes()
        if all(word in name for word in options.words)
    }
    if not found:
        raise InputError(
            f"no recipe name contains {' and '.join(options.words)}; superclip recipes lists all"
        )
    exact = [name for name in found if options.words in ([name], [name.partition("/")[2]])]
    recipes = dict(sorted(found.items(), key=_place))
    if options.json:
        print(json.dumps({name: recipe.as_dict() for name, recipe in recipes.items()}, indent=1))
    elif len(exact) == 1:
        print(found[exact[0]].text, end="")
    else:
        print(_list_of(recipes))
    return 0


def _fields_table() -> str:
    """Returns the table of docs/recipe-fields.md."""
    rows = []
    for name, field in FIELDS.items():
        expected = f" ({field.metadata['expected']})" if field.metadata["expected"] else ""
        required = "yes" if name in REQUIRED else ""
        meaning = field.metadata["help"] + expected
        rows.append([f"`{name}`", KINDS[kind_of(name)], required, meaning])
    return markdown_table(["field", "type", "required", "meaning"], rows)


def _place(item: tuple[str, Recipe]) -> tuple[str, int]:
    """Returns the place in the list of a recipe with its name: sizes of batches as numbers."""
    name, recipe = item
    return name.rpartition("_bs")[0], recipe.global_batch_size


def _list_of(recipes: dict[str, Recipe]) -> str:
    """Returns a line for each recipe, by name."""
    rows = [HEAD]
    for name, recipe in recipes.items():
        rows.append(
            [
                name,
                METHODS[recipe.method],
                recipe.model,
                recipe.data,
                f"{recipe.global_batch_size:,}",
                f"{recipe.samples:,}",
                _score(recipe),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _score(recipe: Recipe) -> str:
    """Returns the paper's zero-shot accuracy on ImageNet, or another score if it has none."""
    if recipe.paper is None:
        return "–"
    values = recipe.paper["values"]
    measure = next(
        name for name in ("imagenet_zero_shot", "average_of_38", *values) if name in values
    )
    about = "≈ " if recipe.paper["read_off"] else ""
    return f"{measure.replace('_', ' ')} {about}{values[measure]} ({recipe.paper['source']})"
