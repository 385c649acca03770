"""The paper's scores, from `paper:` of the recipes, for the tables and figures of reports."""

from collections import defaultdict
from typing import NamedTuple

from ..plans.recipe_files import read_recipe, shipped_recipes
from .reported_run import Variant, method_variant, recipe_options


class PaperPoint(NamedTuple):
    """A score in the paper, in the unit of `scores`, and its source."""

    batch_size: int
    key: str
    value: float
    source: str  # tables and figures


def paper_points(
    model: str, data: str, samples: int
) -> dict[tuple[str, Variant], list[PaperPoint]]:
    """Returns the paper's scores of that model, data set and number of samples, from `paper:` of
    the recipes, by method and variant; in the order of the recipes, by batch size."""
    points = defaultdict(list)
    for recipe in map(read_recipe, shipped_recipes()):
        of_recipe = (recipe.model, recipe.data, recipe.samples)
        if not recipe.paper or of_recipe != (model, data, samples):
            continue
        source = recipe.paper["source"]
        if recipe.paper["read_off"]:
            source += ", read off ±0.05"
        variant = method_variant(recipe.method, recipe_options(recipe))
        for key, value in recipe.paper["values"].items():
            point = PaperPoint(recipe.global_batch_size, key, value, source)
            points[recipe.method, variant].append(point)
    return points
