"""A plan: a recipe on so many nodes and GPUs, in the steps that OpenCLIP will really run."""

import dataclasses
import math
from collections.abc import Mapping

from ..config import Config
from ..data.tables import Columns, is_table
from ..errors import InputError
from ..openclip.train import check_command
from .recipe import Recipe, read_recipe
from .run import train_arguments

WELL_FILLED = 0.5  # of what a GPU holds; below it another number of GPUs trains faster


def split(
    global_batch: int, nodes: int, gpus_per_node: int, gpu_batch_max: int | None = None
) -> tuple[int, int, list[str]]:
    """Returns batch size per GPU, accumulation and warnings: their product with the number of GPUs is `global_batch`.

    Raises InputError, with the nearest numbers of GPUs, where the batch cannot be divided among so many.
    """
    world_size = nodes * gpus_per_node
    if global_batch % world_size:
        raise InputError(_refusal(global_batch, nodes, gpus_per_node))
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
    """Returns the divisors of a positive number, the smallest first."""
    small = [size for size in range(1, int(number**0.5) + 1) if number % size == 0]
    return sorted({*small, *(number // size for size in small)})


def _refusal(global_batch: int, nodes: int, gpus_per_node: int) -> str:
    world_size = nodes * gpus_per_node
    possible = divisors(global_batch)
    near = [*[n for n in possible if n < world_size][-1:], *[n for n in possible if n > world_size][:1]]
    ways = [
        f"{n} GPUs" + (f" (--nodes {n // gpus_per_node} of {gpus_per_node})" if n % gpus_per_node == 0 else "")
        for n in near
    ]
    return (
        f"--nodes {nodes} --gpus-per-node {gpus_per_node}: a global batch of {global_batch:,} does not divide among "
        f"{world_size} GPUs; the nearest that work are {' and '.join(ways)}, or --set global_batch_size="
        + " or ".join(str(size) for size in _near_batches(global_batch, world_size))
    )


def _near_batches(global_batch: int, world_size: int) -> list[int]:
    below = global_batch // world_size * world_size
    return [size for size in (below, below + world_size) if size]


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
    if not is_table(path):
        return {}
    told = {"data_samples": str(count_rows(path, columns_of(found), _config(found))), "slices": "1"}
    for field, value in told.items():
        if set_.get(field, value) != value:
            raise InputError(f"--set {field}={set_[field]}: the table {path} makes it {value}; leave it out")
    return told


def count_rows(path: str, columns: Columns, config: Config) -> int:
    """Returns how many rows of a table are trained on; InputError where it cannot be read."""
    from ..data.tables import read_table

    return read_table(path, columns, config, "--data").num_trained(config)


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
    from ..data.images import NUM_THREADS
    from ..data.tables import MAX_DECODED, check_table, read_table

    columns, config, bad = columns_of(plan.recipe), _config(plan.recipe), []
    sizes = (plan.batch_size, plan.world_size)
    warnings = check_table(plan.data, columns, config, *sizes, "--data", 0 if full else MAX_DECODED)
    if full:
        table = read_table(plan.data, columns, config, "--data", None, jobs or NUM_THREADS, quiet=False)
        bad = [{"shard": image, "row": row, "problem": problem} for row, image, problem in table.bad]
    found = {"data": plan.data, "rows": plan.recipe.data_samples, "full": full, "bad": bad, "good": None}
    return {**found, "warnings": [*warnings, *check_validation(plan.recipe)]}


def check_validation(recipe: Recipe) -> list[str]:
    """Returns what is to be said of the recipe's validation data; InputError where OpenCLIP could not measure on it."""
    val_data = recipe.flags.get("val-data")
    if not val_data:
        return []
    from ..data.inspection import START, inspect
    from ..data.tables import check_table

    if is_table(val_data):
        return check_table(val_data, columns_of(recipe), Config(), 1, 1, "--val-data")
    return inspect(val_data, "--val-data", "", START).warnings()


def _config(recipe: Recipe) -> Config:
    options = recipe.superclip or {}
    return Config(**{name: options[name] for name in ("captions", "long_caption", "missing_long") if name in options})


ENGINES = ("torchrun", "horovod")


def engine_flags(engine: str, arguments: list[str]) -> list[str]:
    """Returns what an engine adds to the arguments of `superclip train`; InputError where it cannot train with them.

    The launcher starts Horovod's ranks as it does torch.distributed's: it reaches every node without ssh or MPI and
    sees a rank fail.
    """
    if engine == "torchrun":
        return []
    from ..openclip.horovod import refuse_broken
    from ..openclip.train import check_command

    refuse_broken(vars(check_command(arguments)))
    return ["--horovod"]


MOST_ROUNDED_UP = 1.5  # times the recipe's steps: more is another run


NUM_KEPT = 2  # newest checkpoints: the last may lie in a cache still, when a machine loses power


NUM_KEPT_LONG = 5  # checkpoints over a whole run: to go back to, where the training turns out to have gone wrong


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a recipe is trained on given machines."""

    recipe: Recipe
    nodes: int
    gpus_per_node: int
    device: str
    data: str  # --train-data
    workers: int
    batch_size: int  # per GPU
    accum_freq: int
    slice_samples: int  # --train-num-samples: an epoch of OpenCLIP's is a slice
    num_slices: int  # that are trained
    slice_steps: int  # that OpenCLIP runs in a slice
    warnings: list[str]

    @property
    def global_batch_size(self) -> int:
        return self.recipe.global_batch_size

    @property
    def world_size(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def slices_per_pass(self) -> int:
        return self.recipe.slices

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.slice_steps * self.num_slices

    @property
    def samples(self) -> int:
        """Samples that the run trains on."""
        return self.steps * self.global_batch_size

    @property
    def passes(self) -> float:
        return self.num_slices / self.slices_per_pass

    @property
    def kept_every(self) -> int:
        """Every so many slices a checkpoint is kept, beside the newest and those at the ends of passes."""
        slices = self.num_slices if self.is_table else self.slices_per_pass
        return min(slices, math.ceil(self.num_slices / NUM_KEPT_LONG))

    @property
    def most_checkpoints(self) -> int:
        """How many checkpoints a run has at a time at most, the one that is being written among them."""
        num_kept = NUM_KEPT + sum(map(self.keeps, range(1, self.num_slices + 1 - NUM_KEPT)))
        return min(self.num_slices, num_kept + 1)

    def keeps(self, epoch: int) -> bool:
        """Returns whether the checkpoint after so many slices is kept however old it is."""
        ends_pass = not self.is_table and epoch % self.slices_per_pass == 0  # a table's every epoch is a pass
        return epoch % self.kept_every == 0 or ends_pass

    @property
    def command(self) -> list[str]:
        """The arguments of `superclip train`, without --logs, --name and --resume."""
        return train_arguments(self)

    @property
    def is_table(self) -> bool:
        """Whether the data is a table, of which an epoch of OpenCLIP's is a pass, and not shards."""
        return is_table(self.data)

    def check_shards(self) -> list[str]:
        """Returns warnings of what the pattern of shards alone tells, without a look at files.

        Raises InputError where a worker would have no shard of a slice, or no batch in those that it has.
        """
        from ..data.shards import expand, refuse_other_patterns
        from ..data.slices import equal_sizes

        if self.is_table:
            return []
        shards = expand(self.data)
        refuse_other_patterns(shards[0])
        split = self._split(len(shards))
        split.check()
        return split.check_shares(equal_sizes(self.recipe.data_samples, len(shards)))

    def check_data(self, full: bool = False, jobs: int | None = None) -> dict:
        """Returns what is known of the plan's data; InputError where training could not start."""
        from ..data.inspection import check_data
        from ..data.shards import expand

        if self.is_table:
            return check_training_table(self, full, jobs)
        checked = check_data(
            self.data, self._split(len(expand(self.data))), self.recipe.data_samples, full,
            long_caption=self.recipe.long_caption, jobs=jobs,
        )  # fmt: skip
        return checked | {"warnings": [*checked["warnings"], *check_validation(self.recipe)]}

    def _split(self, num_shards: int):
        from ..data.slices import Split

        return Split(
            num_shards, self.world_size, self.workers, self.slices_per_pass, self.slice_samples, self.batch_size
        )

    def as_dict(self) -> dict:
        """Returns the plan for JSON."""
        recipe = self.recipe
        return {
            "recipe": recipe.name,
            "method": recipe.method,
            "model": recipe.model,
            "data": self.data,
            "device": self.device,
            "nodes": self.nodes,
            "gpus_per_node": self.gpus_per_node,
            "world_size": self.world_size,
            "global_batch_size": self.global_batch_size,
            "batch_size": self.batch_size,
            "accum_freq": self.accum_freq,
            "workers": self.workers,
            "samples": self.samples,
            "recipe_samples": recipe.samples,
            "steps": self.steps,
            "slices": self.slices_per_pass,
            "epochs": self.num_slices,
            "passes": self.passes,
            "slice_samples": self.slice_samples,
            "slice_steps": self.slice_steps,
            "warnings": self.warnings,
            "command": self.command,
        }


def make_plan(
    recipe: Recipe,
    nodes: int = 1,
    gpus_per_node: int = 1,
    data: str | None = None,
    gpu_batch_max: int | None = None,
    workers: int | None = None,
    device: str = "cuda",
) -> Plan:
    """Returns the plan of `recipe` on `nodes` × `gpus_per_node` ranks; InputError for a split that cannot be.

    Args:
        data: --train-data, where it is not the recipe's own pattern.
        gpu_batch_max: what a GPU's memory holds; the rest of the batch is accumulated.
        workers: of each rank's data loader, where they are not the recipe's.
        device: "cuda" or "cpu".
    """
    for flag, value in (("--nodes", nodes), ("--gpus-per-node", gpus_per_node)):
        if value < 1:
            raise InputError(f"{flag} is {value}; expected 1 or more")
    workers = recipe.workers if workers is None else workers
    if workers < 0:
        raise InputError(f"--workers is {workers}; expected 0 or more")
    batch_size, accum_freq, warnings = split(recipe.global_batch_size, nodes, gpus_per_node, gpu_batch_max)
    data = recipe.shards if data is None else data
    if is_table(data):
        num_slices, slice_samples, slice_steps = table_passes(
            recipe, data, batch_size, nodes * gpus_per_node, accum_freq
        )
    else:
        num_slices, slice_samples = cut(recipe)
        slice_steps = openclip_steps(slice_samples, batch_size, nodes * gpus_per_node, workers, accum_freq)
    plan = Plan(
        recipe, nodes, gpus_per_node, device, data, workers, batch_size, accum_freq, slice_samples, num_slices,
        slice_steps, warnings,
    )  # fmt: skip
    if plan.is_table:
        warnings += rounded_passes(recipe, num_slices)
    else:
        _refuse_other_length(plan)
        warnings += _rounding(plan)
    if recipe.warmup >= plan.steps:
        warnings.append(
            f"warm-up takes {recipe.warmup:,} steps, and the run {plan.steps:,}: --set warmup=N shortens it"
        )
    check_command(plan.command)
    return plan


def cut(recipe: Recipe) -> tuple[int, int]:
    """Returns how many slices are trained, and --train-num-samples of each.

    The fewest slices that hold the recipe's samples once, and whose steps are the recipe's exactly; where that would
    take half as many again, the fewest, and the steps of a slice are rounded up.
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


def _refuse_other_length(plan: Plan) -> None:
    """Raises InputError where slices of a few steps each, rounded up to the workers', make quite another run."""
    recipe, exact = plan.recipe, math.ceil(plan.recipe.samples / plan.recipe.global_batch_size)
    if plan.steps <= MOST_ROUNDED_UP * exact:
        return
    fewer_slices = (recipe.slices >> halved for halved in range(1, recipe.slices.bit_length()))
    ways = [*((slices, plan.workers) for slices in fewer_slices), *((1, n) for n in range(plan.workers - 1, -1, -1))]
    for slices, workers in ways:
        num_slices, slice_samples = cut(dataclasses.replace(recipe, slices=slices))
        steps = openclip_steps(slice_samples, plan.batch_size, plan.world_size, workers, plan.accum_freq)
        if steps * num_slices <= MOST_ROUNDED_UP * exact:
            fewer_workers = f" --workers {workers}" if workers != plan.workers else ""
            advice = f"--set slices={slices}{fewer_workers} would do"
            break
    else:
        advice = f"the data set's {recipe.data_samples:,} samples are too few for global batches of them"
    raise InputError(
        f"slices: {recipe.slices:,} to a pass leave each so few steps that OpenCLIP, which rounds them up to a "
        f"multiple of the {max(1, plan.workers):,} workers, would run {plan.steps:,}, not the recipe's {exact:,}; "
        + advice
    )


def _rounding(plan: Plan) -> list[str]:
    """Returns a warning where OpenCLIP will not run the recipe's number of steps."""
    recipe = plan.recipe
    exact = recipe.samples / recipe.global_batch_size
    if plan.steps == exact:
        return []
    return [
        f"OpenCLIP will run {plan.steps:,} steps ({plan.samples:,} samples), not the recipe's {exact:,.10g} "
        f"({recipe.samples:,})"
    ]
