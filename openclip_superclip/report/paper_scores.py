"""The paper's scores, from the shipped recipes."""

import functools
import re
from typing import NamedTuple

from ..planning.recipe import Recipe
from ..planning.recipe_file import read_recipe, recipe_files
from .reported_run import method_variant

HELD = {  # what the tables and figures hold of which a recipe names several
    "Table 2": re.compile(r"imagenet_(v2_)?zero_shot|(coco|flickr30k)_.*_r1"),
    "Table 5": re.compile(r"(coco|flickr30k)_.*_r1|average_of_38"),
    "Table 7": re.compile(r"imagenet_linear_probe|(pascal|ade20k)_miou|nyuv2_rmse"),
    "Table 8": re.compile(r"llava_.*"),
    "Table 9": re.compile(r"imagenet_zero_shot|.*_r1_average"),
    "Table 10": re.compile(r"imagenet_zero_shot|(coco|flickr30k)_.*_r1"),
    "Figure 4": re.compile(r"imagenet_(zero_shot|linear_probe)"),
}


class PaperPoint(NamedTuple):
    """A score of the paper's, in its unit (see run_scores), and where it stands."""

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
            recipe.method, method_variant(recipe), recipe.global_batch_size, key, value,
            _source(recipe.paper["source"], key), bool(recipe.paper.get("read_off")),
        )
        for recipe in _recipes_of_the_paper()
        if (recipe.model, recipe.data, recipe.samples) == (model, data, samples)
        for key, value in recipe.paper["values"].items()
    ]  # fmt: skip


def _source(sources: str, key: str) -> str:
    """Returns the first of a recipe's sources that holds a score: its value is from there."""
    holding = (source for source in sources.split(", ") if source not in HELD or HELD[source].fullmatch(key))
    return next(holding, sources)


@functools.cache
def _recipes_of_the_paper() -> list[Recipe]:
    recipes = [read_recipe(str(file)) for file in recipe_files()]
    return [recipe for recipe in recipes if (recipe.paper or {}).get("values")]
