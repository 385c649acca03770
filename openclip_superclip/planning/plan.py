"""A plan: a recipe on so many nodes and GPUs, in the steps that OpenCLIP will really run."""

import dataclasses
import math

from ..data.table_columns import is_table_file
from ..errors import InputError
from ..integration.command_check import check_command
from .batch_split import divisors, split
from .recipe import Recipe
from .table_data import rounded_passes, table_passes
from .train_command import train_arguments

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
        return is_table_file(self.data)

    def check_shards(self) -> list[str]:
        """Returns warnings of what the pattern of shards alone tells, without a look at files.

        Raises InputError where a worker would have no shard of a slice, or no batch in those that it has.
        """
        from ..data.shard_arithmetic import check_number, check_shares, equal_sizes
        from ..data.shard_pattern import expand, refuse_other_patterns

        if self.is_table:
            return []
        shards = expand(self.data)
        refuse_other_patterns(shards[0])
        num_shards = len(shards)
        check_number(num_shards, self.world_size, self.workers, self.slices_per_pass)
        return check_shares(
            equal_sizes(self.recipe.data_samples, num_shards), self.slices_per_pass, slice_samples=self.slice_samples,
            batch_size=self.batch_size, world_size=self.world_size, workers=self.workers,
        )  # fmt: skip

    def check_data(self, full: bool = False, jobs: int | None = None) -> dict:
        """Returns what is known of the plan's data; InputError where training could not start."""
        from ..data.shard_scan import check_data
        from .table_data import check_training_table, check_validation

        if self.is_table:
            return check_training_table(self, full, jobs)
        checked = check_data(
            self.data, self.world_size, self.workers, self.slices_per_pass, self.recipe.data_samples, full,
            slice_samples=self.slice_samples, batch_size=self.batch_size, long_caption=self.recipe.long_caption,
            jobs=jobs,
        )  # fmt: skip
        return checked | {"warnings": [*checked["warnings"], *check_validation(self.recipe)]}

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
    if is_table_file(data):
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
