"""superclip plan: a list of the recipes; the steps, data, hardware and cost of a run before it
starts, on one screen."""

import argparse

from ..errors import InputError, Parser, to_stdout
from ..plans.cost import estimate_cost, long_slice
from ..plans.plan_text import plan_text
from ..plans.recipe import METHODS, Recipe
from ..plans.recipe_files import is_recipe, read_recipe, shipped_recipes
from .recipe_options import (
    add_gpus_per_node,
    add_plan_options,
    all_settings,
    flag_of,
    gpus_per_node,
    planned_run,
)
from .shared_options import add_number, add_switch

HEAD = ("recipe", "method", "model", "data", "batch", "samples", "the paper's value")


def main(argv: list[str]) -> int:
    """Prints the plan of a recipe, or the list of recipes, and returns the exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    if len(options.recipe) == 1 and is_recipe(options.recipe[0]):
        (options.recipe,) = options.recipe
        if options.yaml:
            to_stdout(read_recipe(options.recipe, all_settings(options)).text, end="")
        else:
            _plan(options)
        return 0
    for name, value in vars(options).items():
        if name != "recipe" and value != parser.get_default(name):
            raise InputError(
                f"{flag_of(name)}: expected the name of one recipe before it; superclip plan "
                f"{' '.join(options.recipe)} lists recipes"
            )
    to_stdout(_list_of(options.recipe))
    return 0


def _parser() -> Parser:
    parser = Parser(
        "plan",
        "Prints the plan of a run: OpenCLIP's command, batch, steps, slices, "
        "FLOPs, hours, memory and checkpoints. With --data, it also reads a part of the data. "
        "Without a recipe, it lists the recipes; words filter the list. ≈ marks values read off a "
        "figure.",
        "datacomp1b/superclip_vit-b-16_512m_bs16k --nodes 4 --gpus-per-node 8",
    )
    parser.option(
        "recipe",
        "a file or the name of a recipe, or words contained in the names to list",
        nargs="*",
        metavar="RECIPE",
    )
    add_switch(parser, "--yaml", "print the complete recipe instead of the plan")
    add_plan_options(parser, here=False)
    add_number(parser, "--nodes", 1, "number of nodes", "N")
    add_gpus_per_node(parser)
    parser.option(
        "--samples-per-second",
        "measured throughput of all GPUs together (default: an estimate for A100s)",
        type=float,
        metavar="S",
    )
    return parser


def _plan(options: argparse.Namespace) -> None:
    """Prints the plan."""
    speed = options.samples_per_second
    if speed is not None and not 0 < speed < float("inf"):
        raise InputError(f"--samples-per-second is {speed}; expected a number above 0")
    run = planned_run(options, options.nodes, gpus_per_node(options), options.device)
    warnings = run.check_shards()
    if options.data is None:
        run.warnings.extend(warnings)
    cost = estimate_cost(run, speed)
    run.warnings.extend(long_slice(run, cost["slice_hours"]))
    check = run.check_data() if options.data is not None else None
    to_stdout(plan_text(run, cost, check))


def _list_of(words: list[str]) -> str:
    """Returns a line for each recipe whose name contains all words; InputError if there is none."""
    recipes = {
        name: read_recipe(name)
        for name in shipped_recipes()
        if all(word.lower() in name for word in words)
    }
    if not recipes and len(words) == 1:
        read_recipe(words[0])  # InputError with similar names
    if not recipes:
        raise InputError(f"no recipe name contains {' and '.join(words)}; superclip plan lists all")
    rows = [HEAD]
    for name, recipe in sorted(recipes.items(), key=_place):
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


def _place(item: tuple[str, Recipe]) -> tuple[str, int]:
    """Returns the place in the list of a recipe with its name: sizes of batches as numbers."""
    name, recipe = item
    return name.rpartition("_bs")[0], recipe.global_batch_size


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
