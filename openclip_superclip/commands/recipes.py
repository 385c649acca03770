"""superclip recipes: a table of all recipes."""

import argparse
import dataclasses
import json
import textwrap
from collections.abc import Sequence

from ..config import Config
from ..errors import InputError
from ..pages import markdown_table
from ..runs.recipe import FIELDS, KINDS, MEASURES, REQUIRED, TAKEN, VALUES, is_mapping

ABOUT = """# The fields of a recipe

```bash
superclip recipes --fields
```

prints this page. A recipe is one YAML file with these fields and no others; `--set FIELD=VALUE` replaces one,
`--set superclip.weight=2` one within another. [Recipes](recipes.md) tells how they are trained."""


OF_SUPERCLIP = """## superclip

The fields of [`--superclip`](../README.md), each the flag of the same name. Left out, a field has its default."""


OF_FLAGS = """## flags

Any flag of OpenCLIP (`superclip train --help`), without the dashes: `grad-checkpointing: true`, `val-data: val.csv`.
"""


OF_PAPER = """## paper

"""


def reference() -> str:
    """Returns the page, docs/recipe-fields.md, in Markdown."""
    rows = [
        [f"`{name}`", _kind(name), "yes" if name in REQUIRED else "", _meaning(name, field)]
        for name, field in FIELDS.items()
    ]
    options = [
        [f"`{field.name}`", f"`{field.metadata['flag']}`", _default(field.default), field.metadata["help"]]
        for field in dataclasses.fields(Config)
    ]
    return "\n\n".join(
        [
            ABOUT,
            markdown_table(["field", "holds", "required", "meaning"], rows),
            OF_SUPERCLIP,
            markdown_table(["field", "flag", "default", "meaning"], options),
            OF_FLAGS
            + _listed("These are not among them, since they follow from other fields or are the run's to say: ", TAKEN),
            OF_PAPER + _listed("`values` holds, in percent but for `nyuv2_rmse` and `llava_mme`, some of ", MEASURES),
        ]
    )


def _listed(said: str, names: Sequence[str]) -> str:
    names = ", ".join(f"`{name}`" for name in names)
    return textwrap.fill(f"{said}{names}.", width=120, break_long_words=False, break_on_hyphens=False)


def _kind(name: str) -> str:
    return KINDS[dict if is_mapping(name) else FIELDS[name].type]


def _meaning(name: str, field: dataclasses.Field) -> str:
    return field.metadata["help"] + (f" ({VALUES[name][1]})" if name in VALUES else "")


def _default(default) -> str:
    return "none" if default in ("", None) else f"`{str(default).lower() if isinstance(default, bool) else default}`"


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

        print(reference())
        return 0
    from ..runs.recipe import read_recipe, recipe_files

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
    from ..runs.recipe import METHODS

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
