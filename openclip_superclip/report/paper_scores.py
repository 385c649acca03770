"""The paper's scores, from the shipped recipes."""

import functools
from typing import NamedTuple

from ..planning.recipe import Recipe
from ..planning.recipe_file import read_recipe, recipe_files
from .reported_run import method_variant


class PaperPoint(NamedTuple):
    """A score of the paper's, in percent, and where it stands."""

    method: str
    variant: dict
    batch_size: int
    key: str
    value: float
    source: str
    read_off: bool  # off a figure, not printed


def paper_points(model: str, data: str, samples: int) -> list[PaperPoint]:
    """Returns what the paper tells of runs of that model, data set and number of samples."""
    return [
        PaperPoint(
            recipe.method, method_variant(recipe), recipe.global_batch_size, key, value, recipe.paper["source"],
            bool(recipe.paper.get("read_off")),
        )
        for recipe in _recipes_of_the_paper()
        if (recipe.model, recipe.data, recipe.samples) == (model, data, samples)
        for key, value in recipe.paper["values"].items()
    ]  # fmt: skip


@functools.cache
def _recipes_of_the_paper() -> list[Recipe]:
    recipes = [read_recipe(str(file)) for file in recipe_files()]
    return [recipe for recipe in recipes if (recipe.paper or {}).get("values")]
