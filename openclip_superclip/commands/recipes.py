"""superclip recipes: a table of all recipes."""

import argparse
import json

from ..errors import InputError

HEAD = ("recipe", "method", "model", "data", "batch", "samples", "the paper's value")


def main(argv: list[str]) -> int:
    """Prints the table, or JSON, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="superclip recipes",
        description="Lists the recipes that superclip plan, run and submit take. ≈: read off a figure.",
        epilog="example: superclip recipes datacomp1b vit-b-16_512m",
    )
    parser.add_argument("words", nargs="*", metavar="WORD", help="only the recipes whose name holds every WORD")
    parser.add_argument("--json", action="store_true", help="print all their fields as JSON")
    parser.add_argument("--fields", action="store_true", help="print what a recipe's fields mean, in Markdown")
    options = parser.parse_args(argv)
    if options.fields:
        if options.words or options.json:
            raise InputError("--fields is about every recipe: leave out WORD and --json")
        from ..planning.recipe_reference import reference

        print(reference())
        return 0
    from ..planning.recipe_file import read_recipe, recipe_files

    named = {f"{path.parent.name}/{path.stem}": path for path in recipe_files()}
    found = {
        name: read_recipe(str(path)) for name, path in named.items() if all(word in name for word in options.words)
    }
    if not found:
        raise InputError(f"no recipe's name holds {' and '.join(options.words)}; superclip recipes lists all")
    recipes = dict(sorted(found.items(), key=lambda item: (item[0].rpartition("_bs")[0], item[1].global_batch_size)))
    if options.json:
        print(json.dumps({name: recipe.as_dict() for name, recipe in recipes.items()}, indent=1))
    else:
        print(table(recipes))
    return 0


def table(recipes: dict) -> str:
    """Returns a line for each recipe, given by name."""
    from ..planning.recipe_rules import METHODS

    rows = [HEAD]
    for name, recipe in recipes.items():
        method, batch, samples = METHODS[recipe.method], f"{recipe.global_batch_size:,}", f"{recipe.samples:,}"
        rows.append((name, method, recipe.model, recipe.data, batch, samples, _value(recipe)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = (HEAD.index("batch"), HEAD.index("samples"))
    return "\n".join(
        "  ".join(
            f"{cell:{'>' if place in numbers else '<'}{widths[place]}}" for place, cell in enumerate(row)
        ).rstrip()
        for row in rows
    )


def _value(recipe) -> str:
    """Returns zero-shot accuracy on ImageNet as the paper has it, or what it has instead."""
    if recipe.paper is None:
        return "–"
    values = recipe.paper["values"]
    measure = next(name for name in ("imagenet_zero_shot", "average_of_38", *values) if name in values)
    about = "≈ " if recipe.paper["read_off"] else ""
    return f"{measure.replace('_', ' ')} {about}{values[measure]} ({recipe.paper['source']})"
