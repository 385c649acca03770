"""Some minutes of a run on its own machines, uninterrupted, then stopped and resumed; an estimate
of the whole run."""

import shutil
import signal
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from ..data.slices import batches_of_shards
from ..errors import InputError
from ..files import read_json
from ..plans.recipe import Recipe
from ..plans.recipe_files import with_settings
from ..plans.run import Run
from ..rendering import bytes_text, significant
from .folder import RunFolder
from .launcher import NodeTraining
from .progress import read_log
from .signals import Stopped
from .slurm import Placement

SLICES = 2  # that are trained; the training is interrupted in the second
# folders in the rehearsal's
UNINTERRUPTED = "uninterrupted"
INTERRUPTED = "interrupted"
MAX_RESTARTS = 2  # of a requeued job
MAX_WAITING = 0.1  # of the time: with more, the data is reported as the bottleneck
LOW_MEMORY = 0.5  # of a GPU: below it, a larger batch per GPU is proposed
# of samples per second, by the hours that follow
SPEEDS = {"low": "high", "median": "median", "high": "low"}


class Interrupted(Stopped):
    """Stops a training as SLURM's SIGUSR1 does before the time limit."""


class InterruptedTraining(NodeTraining):
    """Stops itself in the second slice."""

    def _each_second(self) -> None:
        super()._each_second()
        if self.folder.epoch == 1:
            raise Interrupted(signal.SIGUSR1)


@dataclass
class Rehearsal:
    """A rehearsal of a run made by `rehearsed_run`, in a new folder that all nodes see.

    A requeued job starts over."""

    run: Run
    placement: Placement
    folder: Path

    def check_folder(self) -> None:
        """Raises InputError if the folder contains a rehearsal that is not of an earlier start
        of this job."""
        here = self.placement
        attempts = RunFolder(self.folder / UNINTERRUPTED).attempts
        is_requeued = 0 < here.restarts <= MAX_RESTARTS
        if attempts and not (is_requeued and attempts[0].get("job") == here.job):
            raise InputError(
                f"--out: {self.folder} contains a rehearsal: remove it, or give --out another "
                "folder"
            )

    def train(self) -> int:
        """Trains, trains again until the interruption, and resumes; returns the exit code, 0 if all
        went well."""
        if code := self._train(UNINTERRUPTED, 0):
            return code
        code = self._train(INTERRUPTED, 1, InterruptedTraining)
        # other nodes fail when the ranks of the first one are stopped
        if code and self.placement.node == 0:
            return code
        if code == 0 or self._part(INTERRUPTED).epoch == SLICES:
            raise InputError(
                f"--steps: training ended before its second slice of {self.run.slice_steps} steps "
                "could be stopped; give more, or the recipe fewer slices if its own are that short"
            )
        return self._train(INTERRUPTED, 2)

    def differences(self) -> dict:
        """Returns the number and size of differences in loss between the resumed and the
        uninterrupted training.

        `repeats` is whether losses and weights were equal before the interruption.
        """
        ours = self._losses(INTERRUPTED)
        theirs = self._losses(UNINTERRUPTED)
        gaps = {
            samples: abs(ours[samples] - theirs[samples]) for samples in ours.keys() & theirs.keys()
        }
        first_slice = [gap for samples, gap in gaps.items() if samples <= self.run.slice_samples]
        return {
            "steps": len(theirs),
            "different": sum(map(bool, gaps.values())),
            "missing": len(theirs) - len(gaps),
            "largest": max(gaps.values(), default=0),
            "equal_weights": self._equal_weights(SLICES),
            "repeats": not any(first_slice) and self._equal_weights(1),
        }

    def measures(self) -> list[dict]:
        """Returns the memory and the checkpoints that each uninterrupted rank has measured."""
        folder = self._part(UNINTERRUPTED)
        logs = folder.path / folder.attempts[-1]["ranks"]
        ranks = range(self.run.world_size)
        return [read_json(logs / f"rank_{rank}.measures.json") for rank in ranks]

    def speeds(self) -> list[tuple[float, float]]:
        """Returns samples a second and the fraction of time spent waiting for data, of the
        uninterrupted steps.

        The first quarter of each slice, in which workers and GPUs warm up, is left out.
        """
        batch = self.run.global_batch_size
        speeds = []
        for point in read_log(self._part(UNINTERRUPTED).path / "out.log"):
            step = point["samples"] % point["epoch_samples"] or point["epoch_samples"]
            if step > self.run.slice_steps // 4 * batch:
                speed = point["samples_per_second"]
                speeds.append((speed, min(1.0, point["data_seconds"] * speed / batch)))
        return speeds

    def remove_checkpoints(self) -> None:
        """Removes the checkpoints of both parts, after the report has read them."""
        for name in (UNINTERRUPTED, INTERRUPTED):
            shutil.rmtree(self._part(name).checkpoints, ignore_errors=True)

    def _part(self, name: str) -> RunFolder:
        """Returns the folder of a part of this start."""
        restarts = self.placement.restarts
        return RunFolder(self.folder / (f"{name}-{restarts}" if restarts else name))

    def _train(self, name: str, part: int, kind: type[NodeTraining] = NodeTraining) -> int | None:
        """Returns the exit code, None if training was stopped as intended."""
        placement = self.placement
        if placement.num_nodes > 1:  # each part is a separate start of all nodes
            placement = replace(
                placement, step=f"{placement.step}-{part}", master_port=placement.master_port + part
            )
        try:
            return kind(self.run, placement, self._part(name), measures=True).train()
        except Interrupted:
            return None

    def _losses(self, name: str) -> dict[int, float]:
        """Returns the losses by the samples that were seen."""
        return {
            point["samples"]: point["loss"] for point in read_log(self._part(name).path / "out.log")
        }

    def _equal_weights(self, epoch: int) -> bool:
        import torch

        from ..checkpoints.weights import read_checkpoint

        ours, theirs = (
            read_checkpoint(self._part(name).checkpoints / f"epoch_{epoch}.pt").weights
            for name in (INTERRUPTED, UNINTERRUPTED)
        )
        return ours.keys() == theirs.keys() and all(
            torch.equal(ours[name], theirs[name]) for name in ours
        )


def rehearsed_run(run: Run, steps: int) -> Run:
    """Returns the run shortened to two slices of about `steps` steps, with the same batch,
    ranks, workers and data."""
    if run.is_table:
        raise InputError(
            f"--data: {run.data} is a table, which is trained in whole passes; a rehearsal "
            "needs shards"
        )
    values = with_settings(run.recipe.values, {"flags.log-every-n-steps": "1"})
    recipe = Recipe.of(values, run.recipe.file, run.recipe.name)
    slice_samples = min(steps * run.global_batch_size, run.slice_samples)
    batches = batches_of_shards(slice_samples, run.batch_size, run.world_size, run.workers)
    return replace(
        run,
        recipe=recipe,
        slice_samples=slice_samples,
        slice_steps=batches // run.accum_freq,
        num_slices=SLICES,
        warnings=[],
    )


def report(run: Run, rehearsal: Rehearsal) -> dict:
    """Returns the content of rehearsal.json; `run` is the whole one."""
    ranks = rehearsal.measures()
    steps = rehearsal.speeds()
    deciles = statistics.quantiles((speed for speed, _ in steps), n=10, method="inclusive")
    speed = {"low": deciles[0], "median": deciles[4], "high": deciles[8]}
    checkpoint = max(ranks[0]["checkpoints"], key=lambda one: one["seconds"])
    memory = max((rank["memory"] for rank in ranks), key=lambda memory: memory["peak"])
    waiting = None if run.accum_freq > 1 else statistics.fmean(waiting for _, waiting in steps)
    return {
        "recipe": run.recipe.name,
        **setup_of(run),
        "world_size": run.world_size,
        "samples_per_second": speed,
        "waiting_for_data": waiting,
        "memory": memory,
        "checkpoint": {**checkpoint, "at_most": run.max_checkpoints},
        "disk_free": shutil.disk_usage(rehearsal.folder).free,
        "resumed": rehearsal.differences(),
        "hours": whole_hours(run, speed, checkpoint["seconds"]),
        "limit": _limit(run, waiting or 0, memory),
    }


def _limit(run: Run, waiting: float, memory: dict) -> str:
    """Returns the bottleneck, and what to change."""
    if waiting > MAX_WAITING:
        return (
            f"the data: {waiting:.0%} of the time is spent waiting for it; give more --workers "
            f"than {run.workers} if there are CPUs for them, or faster storage"
        )
    if run.accum_freq > 1 and memory["total"] and memory["peak"] < LOW_MEMORY * memory["total"]:
        return (
            f"accumulation: {memory['peak'] / memory['total']:.0%} of a GPU's memory is used; "
            f"try --gpu-batch-max {2 * run.batch_size}"
        )
    return "computing, not the data"


def setup_of(run: Run) -> dict:
    """Returns what the throughput depends on most."""
    machines = ("device", "nodes", "gpus_per_node", "batch_size", "accum_freq", "workers")
    recipe = {"model": run.recipe.model, "precision": run.recipe.precision}
    return recipe | {name: getattr(run, name) for name in machines}


def whole_hours(
    run: Run, samples_per_second: dict[str, float], checkpoint_seconds: float
) -> dict[str, float]:
    """Returns the hours with checkpoints and without validation: low, median and high."""
    saving = run.num_slices * checkpoint_seconds
    return {
        name: (run.samples / samples_per_second[speed] + saving) / 3600
        for name, speed in SPEEDS.items()
    }


def report_text(summary: dict) -> str:
    """Returns a report on one screen."""
    memory = summary["memory"]
    checkpoint = summary["checkpoint"]
    waiting = summary["waiting_for_data"]
    hours = {name: significant(value) for name, value in summary["hours"].items()}
    speed = {name: significant(value, 4) for name, value in summary["samples_per_second"].items()}
    needed = checkpoint["at_most"] * checkpoint["bytes"]
    of = f" of {bytes_text(memory['total'])}" if memory["total"] else ""
    unit = "GPU" if summary["device"] == "cuda" else "process"
    unit_hours = summary["hours"]["median"] * summary["world_size"]
    differences = other_training(summary)
    lines = {
        "speed": f"{speed['median']} samples/s, {speed['low']} to {speed['high']} in 8 of 10 steps",
        "data": "unknown with --accum-freq"
        if waiting is None
        else f"{waiting:.1%} of the time waiting for it",
        "memory": f"{bytes_text(memory['peak'])}{of}, the peak of a {memory['of']}",
        "checkpoint": f"{checkpoint['seconds']:.2g} s, {bytes_text(checkpoint['bytes'])}; "
        f"{checkpoint['at_most']} need {bytes_text(needed)}, and "
        f"{bytes_text(summary['disk_free'])} are free",
        "resumed": f"NOT equal: {differences}" if differences else _resumed(summary),
        "whole run": f"{hours['median']} hours without validation ({hours['low']} to "
        f"{hours['high']}), {significant(unit_hours)} {unit}-hours",
        "bottleneck": summary["limit"],
    }
    if needed > summary["disk_free"]:
        lines["warning"] = "the disk will be full before the run ends"
    texts = [f"  {name:<12}{text}" for name, text in lines.items()]
    return "\n".join([f"rehearsal of {summary['recipe']}:", *texts])


def other_training(summary: dict) -> str:
    """Returns the differences of the resumed training from the uninterrupted one if they are an
    error, else "".

    On a GPU with nondeterministic kernels they appear before the interruption, and prove nothing.
    """
    resumed = summary["resumed"]
    if resumed["missing"]:
        return f"{resumed['missing']} of {resumed['steps']} steps are missing"
    return "" if summary["device"] == "cuda" and not resumed["repeats"] else _differences(resumed)


def _differences(resumed: dict) -> str:
    differences = []
    if resumed["different"]:
        of_steps = f"{resumed['different']} of {resumed['steps']} steps"
        differences.append(f"the losses differ in {of_steps}, by up to {resumed['largest']:.2g}")
    if not resumed["equal_weights"]:
        differences.append("the weights differ")
    return ", and ".join(differences)


def _resumed(summary: dict) -> str:
    resumed = summary["resumed"]
    if differences := _differences(resumed):
        return (
            f"{differences}; they differ before SIGUSR1 as well: this GPU's kernels are not "
            "deterministic"
        )
    return f"after SIGUSR1, with equal losses in all {resumed['steps']} steps and equal weights"
