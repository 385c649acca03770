"""What a table of training data says of a recipe: how many pairs it holds, and that a pass is not cut into slices."""

import math
from collections.abc import Mapping

from ..config import Config
from ..data.table_columns import Columns, is_table_file
from ..errors import InputError
from .recipe import Recipe
from .recipe_file import read_recipe

OF_TABLE = {"csv-separator": "separator", "csv-img-key": "image", "csv-caption-key": "caption"}


def with_table(recipe: str, set_: Mapping[str, str], data: str | None) -> dict[str, str]:
    """Returns `set_` with what a table that is trained on says of the recipe, as `of_table`."""
    return {**set_, **of_table(recipe, set_, data)}


def of_table(recipe: str, set_: Mapping[str, str], data: str | None) -> dict[str, str]:
    """Returns the number of pairs of the table that is trained on, and one slice a pass; nothing for shards.

    Args:
        recipe: a file or a shipped name.
        data: what is trained on, where it is not the recipe's own.

    Raises InputError where the table cannot be read, and where `set_` says another number of pairs.
    """
    found = read_recipe(recipe, set_)
    path = data or found.shards
    if not is_table_file(path):
        return {}
    told = {"data_samples": str(count_rows(path, columns_of(found), _config(found))), "slices": "1"}
    for field, value in told.items():
        if set_.get(field, value) != value:
            raise InputError(f"--set {field}={set_[field]}: the table {path} makes it {value}; leave it out")
    return told


def count_rows(path: str, columns: Columns, config: Config) -> int:
    """Returns how many rows of a table are trained on; InputError where it cannot be read."""
    from ..data.table_check import look_at_table, num_trained  # imports torch

    return num_trained(look_at_table(path, columns, config, "--data", pictures=False), config)


def columns_of(recipe: Recipe) -> Columns:
    """Returns how OpenCLIP reads the recipe's tables."""
    return Columns(**{field: str(recipe.flags[flag]) for flag, field in OF_TABLE.items() if flag in recipe.flags})


def table_passes(recipe: Recipe, data: str, batch_size: int, world_size: int, accum_freq: int) -> tuple[int, int, int]:
    """Returns how many passes over a table are trained, and the pairs and optimizer steps of each.

    OpenCLIP shares the rows out to the ranks, rounding up, and drops what is left of the last batch. Raises InputError
    where they fill no batch.
    """
    num_rows = recipe.data_samples
    steps = table_steps(num_rows, batch_size, world_size, accum_freq)
    if not steps:
        raise InputError(
            f"--data: the {num_rows:,} rows of {data} fill no global batch of {recipe.global_batch_size:,}: --set "
            "global_batch_size=N makes it smaller"
        )
    return max(1, math.ceil(round(recipe.samples / num_rows, 6))), num_rows, steps


def table_steps(num_rows: int, batch_size: int, world_size: int, accum_freq: int) -> int:
    """Returns the optimizer steps of an OpenCLIP epoch over so many rows."""
    return -(-num_rows // world_size) // batch_size // accum_freq


def rounded_passes(recipe: Recipe, passes: int) -> list[str]:
    """Returns a warning where the recipe's samples are no whole passes, or nothing."""
    if passes * recipe.data_samples == recipe.samples:
        return []
    return [f"a table is trained in whole passes: {passes:,} of {recipe.data_samples:,} rows, not {recipe.samples:,}"]


def check_training_table(plan, full: bool = False, jobs: int | None = None) -> dict:
    """Returns what is known of a plan's table, for JSON; InputError where training could not start.

    Args:
        full: whether to decode all pictures, in `jobs` threads, not the first rows' alone.
    """
    from ..data.picture_check import THREADS, picture_problems
    from ..data.table_check import check_table, pictures_of

    columns, bad = columns_of(plan.recipe), []
    sizes = (plan.batch_size, plan.world_size)
    warnings = check_table(plan.data, columns, _config(plan.recipe), *sizes, "--data", pictures=not full)
    if full:
        pictures = list(pictures_of(plan.data, columns, "--data"))
        problems = picture_problems(pictures, threads=jobs or THREADS, quiet=False)
        bad = [{"shard": p, "problem": problem} for p, problem in zip(pictures, problems, strict=True) if problem]
    found = {"data": plan.data, "rows": plan.recipe.data_samples, "full": full, "bad": bad, "good": None}
    return {**found, "warnings": [*warnings, *check_validation(plan.recipe)]}


def check_validation(recipe: Recipe) -> list[str]:
    """Returns what is to be said of the recipe's validation data; InputError where OpenCLIP could not measure on it."""
    val_data = recipe.flags.get("val-data")
    if not val_data:
        return []
    from ..data.table_check import check_table
    from ..data.training_data_check import check_validation_shards

    if is_table_file(val_data):
        return check_table(val_data, columns_of(recipe), Config(), 1, 1, "--val-data")
    return check_validation_shards(val_data)


def _config(recipe: Recipe) -> Config:
    options = recipe.superclip or {}
    return Config(**{name: options[name] for name in ("captions", "long_caption", "missing_long") if name in options})
