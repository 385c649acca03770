"""Makes a Run of a recipe and machines: how the batch is split, in how many slices and in which steps."""

import dataclasses
import math
from collections.abc import Mapping

from ..data.tables import is_table
from ..errors import InputError
from ..openclip.train import check_command
from .recipe import Recipe, read_recipe
from .run import DEFAULTS, Run, Settings

WELL_FILLED = 0.5  # of what a GPU holds: with less, another number of GPUs is faster
MAX_ROUNDING = 1.5  # times the recipe's steps: more is another run


def make_run(
    recipe: Recipe,
    nodes: int = 1,
    gpus_per_node: int = 1,
    data: str | None = None,
    gpu_batch_max: int | None = None,
    workers: int | None = None,
    device: str = "cuda",
    settings: Settings = DEFAULTS,
    set_: Mapping[str, str] | None = None,
) -> Run:
    """Returns the run of `recipe` on `nodes` × `gpus_per_node` ranks; InputError for an impossible split.

    Args:
        data: --train-data, if it is not the recipe's own pattern.
        gpu_batch_max: samples that a GPU's memory holds; the rest of the batch is accumulated.
        workers: per rank, if they are not the recipe's.
        device: "cuda" or "cpu".
        settings, set_: are kept with the run.
    """
    for flag, value in (("--nodes", nodes), ("--gpus-per-node", gpus_per_node)):
        if value < 1:
            raise InputError(f"{flag} is {value}; expected 1 or more")
    workers = recipe.workers if workers is None else workers
    if workers < 0:
        raise InputError(f"--workers is {workers}; expected 0 or more")
    batch_size, accum_freq, warnings = split(recipe.global_batch_size, nodes, gpus_per_node, gpu_batch_max)
    data, world_size = recipe.shards if data is None else data, nodes * gpus_per_node
    if is_table(data):
        slice_samples, passes = recipe.data_samples, math.ceil(round(recipe.samples / recipe.data_samples, 6))
        num_slices = max(1, passes)
        # OpenCLIP shares the rows out to the ranks, rounding up, and drops the rest of the last batch.
        slice_steps = -(-slice_samples // world_size) // batch_size // accum_freq
        if not slice_steps:
            raise InputError(
                f"--data: the {recipe.data_samples:,} rows of {data} are fewer than one global batch of "
                f"{recipe.global_batch_size:,}: --set global_batch_size=N makes it smaller"
            )
    else:
        num_slices, slice_samples = cut(recipe)
        slice_steps = openclip_steps(slice_samples, batch_size, world_size, workers, accum_freq)
    run = Run(
        recipe, nodes, gpus_per_node, device, data, workers, batch_size, accum_freq, slice_samples, num_slices,
        slice_steps, warnings, gpu_batch_max, settings, dict(set_ or {}),
    )  # fmt: skip
    warnings += _rounding(run)
    if recipe.warmup >= run.steps:
        warnings.append(f"warm-up takes {recipe.warmup:,} steps, and the run {run.steps:,}: --set warmup=N shortens it")
    args = check_command(run.openclip_arguments())
    if settings.engine == "horovod":
        from ..openclip.horovod import refuse_broken

        refuse_broken(vars(args))
    if settings.stage:
        from .stage import check_stage

        check_stage(run)
    return run


def on_machines(run: Run, nodes: int, gpus_per_node: int) -> Run:
    """Returns the run on so many nodes and GPUs."""
    if (run.nodes, run.gpus_per_node) == (nodes, gpus_per_node):
        return run
    return make_run(
        run.recipe, nodes, gpus_per_node, run.data, run.gpu_batch_max, run.workers, run.device, run.settings, run.set
    )


def split(
    global_batch: int, nodes: int, gpus_per_node: int, gpu_batch_max: int | None = None
) -> tuple[int, int, list[str]]:
    """Returns batch size per GPU, accumulation and warnings: their product with the number of GPUs is `global_batch`.

    Raises InputError, with the nearest numbers of GPUs, if the batch cannot be divided among them.
    """
    world_size = nodes * gpus_per_node
    if global_batch % world_size:
        raise InputError(_indivisible(global_batch, nodes, gpus_per_node))
    per_gpu = global_batch // world_size
    if gpu_batch_max is None:
        return per_gpu, 1, []
    if gpu_batch_max < 1:
        raise InputError(f"--gpu-batch-max is {gpu_batch_max}; expected 1 or more")
    batch_size = max(size for size in divisors(per_gpu) if size <= gpu_batch_max)
    warnings = []
    if batch_size < WELL_FILLED * min(gpu_batch_max, per_gpu):
        above = min(size for size in divisors(per_gpu) if size > gpu_batch_max)
        warnings.append(
            f"each GPU's {per_gpu:,} samples of a step come in batches of {batch_size:,}: no larger number up to "
            f"--gpu-batch-max {gpu_batch_max:,} divides them; the next is {above:,}"
        )
    return batch_size, per_gpu // batch_size, warnings


def divisors(number: int) -> list[int]:
    """Returns the divisors of a positive number in ascending order."""
    small = [size for size in range(1, int(number**0.5) + 1) if number % size == 0]
    return sorted({*small, *(number // size for size in small)})


def _indivisible(global_batch: int, nodes: int, gpus_per_node: int) -> str:
    world_size, possible = nodes * gpus_per_node, divisors(global_batch)
    near = [*[n for n in possible if n < world_size][-1:], *[n for n in possible if n > world_size][:1]]
    ways = [
        f"{n} GPUs" + (f" (--nodes {n // gpus_per_node} of {gpus_per_node})" if n % gpus_per_node == 0 else "")
        for n in near
    ]
    below = global_batch // world_size * world_size
    return (
        f"--nodes {nodes} --gpus-per-node {gpus_per_node}: a global batch of {global_batch:,} does not divide among "
        f"{world_size} GPUs; the nearest that work are {' and '.join(ways)}, or --set global_batch_size="
        + " or ".join(str(size) for size in (below, below + world_size) if size)
    )


def cut(recipe: Recipe) -> tuple[int, int]:
    """Returns how many slices are trained, and --train-num-samples of each.

    The fewest slices that hold the recipe's samples once, and whose steps are the recipe's exactly; if that would take
    half as many again, the fewest, and the steps of a slice are rounded up.
    """
    steps = math.ceil(recipe.samples / recipe.global_batch_size)
    fewest = math.ceil(recipe.samples * recipe.slices / recipe.data_samples)
    exact = (n for n in divisors(steps) if fewest <= n <= fewest + fewest // 2)
    num_slices = next(exact, fewest)
    return num_slices, math.ceil(steps / num_slices) * recipe.global_batch_size


def openclip_steps(num_samples: int, batch_size: int, world_size: int, workers: int, accum_freq: int) -> int:
    """Returns the optimizer steps of an OpenCLIP epoch over WebDataset shards.

    OpenCLIP gives every worker of the data loader equally many batches, rounding up; batches that are left over from
    the accumulation are read, but no step is taken.
    """
    num_workers = max(1, workers)
    num_batches = math.ceil(num_samples / (batch_size * world_size))
    return math.ceil(num_batches / num_workers) * num_workers // accum_freq


def _rounding(run: Run) -> list[str]:
    """Returns a warning if OpenCLIP will not run the recipe's number of steps; InputError if it is far from it."""
    recipe, exact = run.recipe, run.recipe.samples / run.recipe.global_batch_size
    if run.is_table:
        if run.num_slices * recipe.data_samples == recipe.samples:
            return []
        rows = f"{run.num_slices:,} of {recipe.data_samples:,} rows"
        return [f"a table is trained in whole passes: {rows}, not {recipe.samples:,}"]
    if run.steps > MAX_ROUNDING * math.ceil(exact):
        raise InputError(
            f"slices: {recipe.slices:,} to a pass leave each so few steps that OpenCLIP, which rounds them up to a "
            f"multiple of the {max(1, run.workers):,} workers, would run {run.steps:,}, not the recipe's "
            f"{math.ceil(exact):,}; {_fewer_slices(run)}"
        )
    if run.steps == exact:
        return []
    return [
        f"OpenCLIP will run {run.steps:,} steps ({run.samples:,} samples), not the recipe's {exact:,.10g} "
        f"({recipe.samples:,})"
    ]


def _fewer_slices(run: Run) -> str:
    """Returns the advice to a run whose slices hold too few steps."""
    recipe, exact = run.recipe, math.ceil(run.recipe.samples / run.recipe.global_batch_size)
    fewer = [recipe.slices >> halved for halved in range(1, recipe.slices.bit_length())]
    for slices, workers in [*((n, run.workers) for n in fewer), *((1, n) for n in range(run.workers - 1, -1, -1))]:
        num_slices, slice_samples = cut(dataclasses.replace(recipe, slices=slices))
        steps = openclip_steps(slice_samples, run.batch_size, run.world_size, workers, run.accum_freq)
        if steps * num_slices <= MAX_ROUNDING * exact:
            return f"--set slices={slices}{f' --workers {workers}' if workers != run.workers else ''} would do"
    return f"the data set's {recipe.data_samples:,} samples are too few for global batches of them"


def read_with_table(name: str, set_: Mapping[str, str], data: str | None) -> Recipe:
    """Returns the recipe of a file or a shipped name, with the number of rows if it is trained on a table."""
    return read_recipe(name, {**set_, **rows_of_table(name, set_, data)})


def rows_of_table(name: str, set_: Mapping[str, str], data: str | None) -> dict[str, str]:
    """Returns the number of pairs of the table that is trained on, and one slice per pass; nothing for shards.

    Args:
        name: a file or a shipped name of a recipe.
        data: what is trained on, if it is not the recipe's own.

    Raises InputError if the table cannot be read, and if `set_` holds another number of pairs.
    """
    recipe = read_recipe(name, set_)
    path = data or recipe.shards
    if not is_table(path):
        return {}
    from ..data.tables import read_table

    config = recipe.caption_config
    rows = read_table(path, recipe.columns, config, "--data").num_trained(config)
    found = {"data_samples": str(rows), "slices": "1"}
    for field, value in found.items():
        if set_.get(field, value) != value:
            raise InputError(f"--set {field}={set_[field]}: the table {path} makes it {value}; leave it out")
    return found
