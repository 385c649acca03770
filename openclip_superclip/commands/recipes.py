"""superclip recipes: a table of all recipes, one complete recipe, or a description of the
fields."""

import json

from ..errors import InputError, Parser, no_effect
from ..plans.recipe import (
    FIELDS,
    KINDS,
    METHODS,
    REQUIRED,
    Recipe,
    kind_of,
    read_recipe,
    shipped_recipes,
)
from ..rendering import markdown_table

HEAD = ("recipe", "method", "model", "data", "batch", "samples", "the paper's value")


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="superclip recipes",
        description="Lists the recipes for superclip plan, run and submit, or prints one of "
        "them as YAML. ≈: read off a figure.",
        epilog="example: superclip recipes datacomp1b vit-b-16_512m",
    )
    add = parser.add_argument
    add(
        "words",
        nargs="*",
        type=str.lower,
        metavar="WORD",
        help="the name of a recipe, or words contained in its name",
    )
    add("--json", action="store_true", help="print all fields as JSON")
    add(
        "--fields", action="store_true", help="print the fields of a recipe, explained, in Markdown"
    )
    options = parser.parse_args(argv)
    if options.words or options.json:
        no_effect(options, "WORD or --json", "fields")
    if options.fields:
        rows = []  # of docs/recipe-fields.md
        for name, field in FIELDS.items():
            expected = f" ({field.metadata['expected']})" if field.metadata["expected"] else ""
            required = "yes" if name in REQUIRED else ""
            rows.append(
                [f"`{name}`", KINDS[kind_of(name)], required, field.metadata["help"] + expected]
            )
        print(markdown_table(["field", "type", "required", "meaning"], rows))
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
    recipes = dict(
        sorted(
            found.items(),
            key=lambda item: (item[0].rpartition("_bs")[0], item[1].global_batch_size),
        )
    )
    if options.json:
        print(json.dumps({name: recipe.as_dict() for name, recipe in recipes.items()}, indent=1))
    elif len(exact) == 1:
        print(found[exact[0]].text, end="")
    else:
        rows = [HEAD]
        for name, recipe in recipes.items():
            row = [name, METHODS[recipe.method], recipe.model, recipe.data]
            row += [f"{recipe.global_batch_size:,}", f"{recipe.samples:,}", _score(recipe)]
            rows.append(row)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        print("\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows))
    return 0


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
