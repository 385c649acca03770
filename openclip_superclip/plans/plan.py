"""Plans a run of a recipe on given machines: batch size per GPU, accumulation, slices and steps."""

import bisect
import json
import math
import os
import shlex
import tarfile
from argparse import Namespace
from collections.abc import Mapping

from ..data.data_check import check_table
from ..data.slices import batches_of_shards, batches_of_table
from ..data.tables import detect_columns, is_table, kind
from ..data.tar_shards import is_remote, is_streamed
from ..errors import InputError, at_least
from ..trainer.start import long_warmup
from ..trainer.train import check_command
from .cost import known_counts
from .recipe import COLUMN_FLAGS, Recipe
from .recipe_files import read_recipe
from .run import DEFAULTS, Run, Settings

# maximum ratio of the run's steps to the recipe's; beyond it, the run is a different one
MAX_ROUNDING = 1.5


def make_run(
    recipe: Recipe,
    nodes: int = 1,
    gpus_per_node: int = 1,
    data: str | None = None,
    gpu_batch_max: int | None = None,
    workers: int | None = None,
    device: str = "cuda",
    settings: Settings = DEFAULTS,
) -> Run:
    """Returns the run of `recipe` on `nodes` × `gpus_per_node` ranks; InputError if the batch
    cannot be split.

    `data` and `workers` are by default the recipe's; a batch above `gpu_batch_max` per GPU is
    accumulated.
    """
    workers = recipe.workers if workers is None else workers
    options = Namespace(
        nodes=nodes, gpus_per_node=gpus_per_node, workers=workers, gpu_batch_max=gpu_batch_max
    )
    at_least(options, nodes=1, gpus_per_node=1, workers=0, gpu_batch_max=1)
    batch_size, accum_freq = split(recipe.global_batch_size, nodes, gpus_per_node, gpu_batch_max)
    data = data_of(recipe, data)
    world_size = nodes * gpus_per_node
    if is_table(data):
        slice_samples = recipe.data_samples
        num_slices = math.ceil(round(recipe.samples / recipe.data_samples, 6))
        batches = batches_of_table(slice_samples, batch_size, world_size)
    else:
        num_slices, slice_samples = cut(recipe)
        batches = batches_of_shards(slice_samples, batch_size, world_size, workers)
    run = Run(
        recipe,
        nodes,
        gpus_per_node,
        device,
        data,
        workers,
        batch_size,
        accum_freq,
        slice_samples,
        num_slices,
        slice_steps=batches // accum_freq,
        gpu_batch_max=gpu_batch_max,
        settings=settings,
    )
    run.warnings.extend(recipe.removed)
    run.warnings.extend(_rounding(run))
    run.warnings.extend(long_warmup(recipe.warmup, run.steps, "--set warmup=N"))
    options = check_command(run.openclip_arguments())
    if known_counts(recipe) is None:  # the check imports OpenCLIP's models
        from ..checkpoints.starting_weights import check_start_of_run

        check_start_of_run(options)
    return run


def data_of(recipe: Recipe, data: str | None) -> str:
    """Returns `data`, the value of --data, or without it the recipe's; InputError if the recipe's
    is a URL or a command."""
    if data is not None:
        return data
    if is_streamed(recipe.shards):
        raise InputError(
            f"{recipe.file}: shards is {recipe.shards}, which a shell would run: if you trust it, "
            f"give it yourself, --data {shlex.quote(recipe.shards)}"
        )
    return recipe.shards


def split(
    global_batch: int, nodes: int, gpus_per_node: int, gpu_batch_max: int | None = None
) -> tuple[int, int]:
    """Returns batch size per GPU and accumulation; times the number of GPUs, they give
    `global_batch`.

    Raises InputError, with the nearest possible numbers of GPUs, if the batch cannot be divided
    among them.
    """
    world_size = nodes * gpus_per_node
    if global_batch % world_size:
        sizes = divisors(global_batch)
        place = bisect.bisect(sizes, world_size)
        nearest = sizes[place - 1 : place + 1]
        raise InputError(
            f"--nodes {nodes} --gpus-per-node {gpus_per_node} (--nproc of superclip run): a "
            "global batch of "
            f"{global_batch:,} does not divide among {world_size} GPUs; the nearest numbers "
            f"that do are {' and '.join(map(str, nearest))}"
        )
    per_gpu = global_batch // world_size
    batch_size = max(size for size in divisors(per_gpu) if size <= (gpu_batch_max or per_gpu))
    return batch_size, per_gpu // batch_size


def divisors(number: int) -> list[int]:
    """Returns the divisors of a positive number in ascending order."""
    small = [size for size in range(1, int(number**0.5) + 1) if number % size == 0]
    return sorted({*small, *(number // size for size in small)})


def cut(recipe: Recipe) -> tuple[int, int]:
    """Returns the number of slices to train, and the --train-num-samples of each.

    This is the smallest number of slices that gives exactly the recipe's steps. If it exceeds the
    smallest possible number by more than 50 %, that number is used, and the steps are rounded up.
    """
    steps = math.ceil(recipe.samples / recipe.global_batch_size)
    fewest = math.ceil(recipe.samples * recipe.slices / recipe.data_samples)
    exact = (n for n in divisors(steps) if fewest <= n <= fewest + fewest // 2)
    num_slices = next(exact, fewest)
    return num_slices, math.ceil(steps / num_slices) * recipe.global_batch_size


def _rounding(run: Run) -> list[str]:
    """Returns a warning if OpenCLIP will not run exactly the recipe's steps; InputError if the
    numbers differ much."""
    recipe = run.recipe
    exact = recipe.samples / recipe.global_batch_size
    if run.is_table:
        if run.num_slices * recipe.data_samples == recipe.samples:
            return []
        passes = f"{run.num_slices:,} of {recipe.data_samples:,} rows each"
        return [f"a table is trained in whole passes: {passes}, not {recipe.samples:,} samples"]
    if run.steps > MAX_ROUNDING * math.ceil(exact):
        raise InputError(
            f"slices: OpenCLIP rounds the steps of each of {recipe.slices:,} slices per pass "
            "up to a multiple of the "
            f"{max(1, run.workers):,} workers, so the run would have {run.steps:,} steps "
            f"instead of the recipe's {math.ceil(exact):,}; use a smaller --set slices=N or fewer "
            "--workers"
        )
    if run.steps == exact:
        return []
    return [
        f"OpenCLIP will run {run.steps:,} steps ({run.samples:,} samples) instead of the "
        f"recipe's {exact:,.10g} ({recipe.samples:,})"
    ]


def settings_of_table(name: str, set_: Mapping[str, str], data: str | None) -> dict[str, str]:
    """Returns the fields that a table determines (number of pairs, one slice per pass, columns); {}
    for shards.

    `name` is a recipe's file or shipped name, and `data` replaces its data. Raises InputError if
    the table cannot be read or fills no batch, or if `set_` contains a different number of pairs.
    """
    recipe = read_recipe(name, set_)
    path = data_of(recipe, data)
    is_unknown = os.path.isfile(path) and not kind(path) and not tarfile.is_tarfile(path)
    if is_unknown or (is_table(path) and is_remote(path)):
        raise InputError(f"--data is {path}; expected a local .csv or .tsv, or shards")
    if not is_table(path):
        return {}
    given = [recipe.flags.get(flag) for flag in COLUMN_FLAGS]
    columns = detect_columns(path, *given, "--data")
    table = check_table(path, columns, "--data", config=recipe.config, max_decoded=0)
    rows = table.num_trained
    if rows < recipe.global_batch_size:
        raise InputError(
            f"--data: {path} has {rows:,} row(s), fewer than one global batch; expected at least "
            f"{recipe.global_batch_size:,}, or a smaller batch with --set global_batch_size=N"
        )
    found = {"data_samples": str(rows), "slices": "1"}
    for field, value in found.items():
        if set_.get(field, value) != value:
            raise InputError(
                f"--set {field}={set_[field]}: the table {path} sets it to {value}; leave it out"
            )
    detected = zip(COLUMN_FLAGS, columns, given, strict=True)
    return found | {
        f"flags.{flag}": json.dumps(name, ensure_ascii=False)
        for flag, name, old in detected
        if old is None
    }
