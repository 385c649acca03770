"""Some minutes of a run on its own machines: two slices, the second one twice; an estimate of the
whole run."""

import math
import shutil
import statistics
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from ..data.slices import batches_of_shards
from ..errors import InputError
from ..files import make_folder, read_json
from ..plans.recipe import Recipe
from ..plans.recipe_files import with_settings
from ..plans.run import Run
from ..rendering import bytes_text, significant
from .folder import RunFolder
from .launcher import NodeTraining
from .progress import end_of_validation, read_log
from .slurm import Placement

SLICES = 2
# folders in the rehearsal's
WHOLE = "whole"
RESUMED = "resumed"  # which trains the second slice again, from the checkpoint of the first


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
        attempts = RunFolder(self.folder / WHOLE).attempts
        if attempts and not (
            self.placement.restarts and attempts[0].get("job") == self.placement.job
        ):
            raise InputError(
                f"--out: {self.folder} contains a rehearsal: remove it, or give --out another "
                "folder"
            )

    def train(self) -> int:
        """Trains both slices, and the second one again; returns the exit code, 0 if all went
        well."""
        if code := self._train(WHOLE, 0):
            return code
        if self.placement.node == 0:
            resumed = self.part(RESUMED).checkpoints
            make_folder(resumed)
            shutil.copy(self.part(WHOLE).checkpoints / "epoch_1.pt", resumed)
        return self._train(RESUMED, 1)

    def part(self, name: str) -> RunFolder:
        """Returns the folder of a part of this start."""
        restarts = self.placement.restarts
        return RunFolder(self.folder / (f"{name}-{restarts}" if restarts else name))

    def points(self, name: str) -> list[dict]:
        """Returns the logged steps of a part."""
        return read_log(self.part(name).path / "out.log")

    def remove_checkpoints(self) -> None:
        """Removes the checkpoints of both parts of all starts, after the report has read them."""
        for restarts in range(self.placement.restarts + 1):
            start = replace(self, placement=replace(self.placement, restarts=restarts))
            for name in (WHOLE, RESUMED):
                shutil.rmtree(start.part(name).checkpoints, ignore_errors=True)

    def _train(self, name: str, part: int) -> int:
        placement = self.placement
        if placement.num_nodes > 1:  # each part is a separate start of all nodes
            placement = replace(placement, step=f"{placement.step}-{part}")
        return NodeTraining(self.run, placement, self.part(name), measures=True).train()


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
    whole = rehearsal.part(WHOLE)
    steps = rehearsal.points(WHOLE)
    middle = rehearsal.run.slice_steps
    # without the first quarter of each slice, in which workers and GPUs warm up
    warm = [step for number, step in enumerate(steps) if number % middle >= middle // 4]
    speed = statistics.median(step["samples_per_second"] for step in warm)
    waiting = None
    if run.accum_freq == 1:  # else OpenCLIP measures a part of it
        seconds = statistics.fmean(step["data_seconds"] for step in warm)
        waiting = min(1.0, seconds * speed / run.global_batch_size)
    # for the checkpoint, and for validation if the run validates after its first slice
    pause = (steps[middle]["time"] - steps[middle - 1]["time"]).total_seconds()
    rare = rare_validations(run, steps[-1]["time"], whole.path / "out.log")
    logs = whole.path / whole.attempts[-1]["ranks"]
    memory = max(
        (read_json(logs / f"rank_{rank}.measures.json") for rank in range(run.world_size)),
        key=lambda memory: memory["peak"],
    )
    return {
        "recipe": run.recipe.name,
        "device": run.device,
        "samples_per_second": speed,
        "waiting_for_data": waiting,
        "memory": memory,
        "checkpoint_bytes": (whole.checkpoints / "epoch_1.pt").stat().st_size,
        "seconds_between_slices": pause,
        "hours": (run.samples / speed + run.num_slices * pause + rare) / 3600,
        "resumed": _differences(rehearsal),
    }


def rare_validations(run: Run, trained: datetime, log: Path) -> float:
    """Returns the seconds of the whole run's validations that do not follow each slice, given when
    the rehearsal's training ended: they follow its last slice."""
    flags = run.recipe.flags
    frequencies = [flags.get("val-frequency", 1)]
    if flags.get("imagenet-val"):
        frequencies.append(flags.get("zeroshot-frequency", 2))
    rare = [frequency for frequency in frequencies if frequency > 1]
    validated = end_of_validation(log)
    if not rare or validated is None:
        return 0.0
    return math.ceil(run.num_slices / min(rare)) * (validated - trained).total_seconds()


def _differences(rehearsal: Rehearsal) -> dict:
    """Returns how the second slice differs when it is trained again: the numbers of its steps, of
    different losses and of missing steps, the largest difference, and whether the weights are
    equal."""
    import torch

    from ..checkpoints.weights import read_checkpoint

    first, again = (
        {step["samples"]: step["loss"] for step in rehearsal.points(name)}
        for name in (WHOLE, RESUMED)
    )
    middle = rehearsal.run.samples // SLICES
    second_slice = [samples for samples in first if samples > middle]
    gaps = [abs(first[step] - again[step]) for step in second_slice if step in again]
    ours, theirs = (
        read_checkpoint(rehearsal.part(name).checkpoints / f"epoch_{SLICES}.pt").weights
        for name in (RESUMED, WHOLE)
    )
    return {
        "steps": len(second_slice),
        "missing": len(second_slice) - len(gaps),
        "different": sum(map(bool, gaps)),
        "largest": max(gaps, default=0),
        "equal_weights": ours.keys() == theirs.keys()
        and all(torch.equal(ours[name], theirs[name]) for name in ours),
    }


def report_text(summary: dict, world_size: int) -> str:
    """Returns a report on one screen; the hours are those of `world_size` ranks."""
    memory = summary["memory"]
    of = f" of {bytes_text(memory['total'])}" if memory["total"] else ""
    unit = "GPU" if summary["device"] == "cuda" else "process"
    waiting = summary["waiting_for_data"]
    lines = {
        "speed": f"{significant(summary['samples_per_second'])} samples/s",
        "data": "unknown with --accum-freq"
        if waiting is None
        else f"{waiting:.1%} of the time waiting for it",
        "memory": f"{bytes_text(memory['peak'])}{of}, the peak of a {memory['of']}",
        "checkpoint": f"{bytes_text(summary['checkpoint_bytes'])}; "
        f"{summary['seconds_between_slices']:.0f} s between two slices",
        "resumed": resumed_text(summary),
        "whole run": f"{significant(summary['hours'], 2)} hours, "
        f"{significant(summary['hours'] * world_size, 2)} {unit}-hours",
    }
    texts = [f"  {name:<12}{text}" for name, text in lines.items()]
    return "\n".join([f"rehearsal of {summary['recipe']}:", *texts])


def is_other_training(summary: dict) -> bool:
    """Returns whether the resumed training is another one: it lacks steps or, on CPUs, which are
    deterministic, differs at all."""
    resumed = summary["resumed"]
    is_equal = not resumed["different"] and resumed["equal_weights"]
    return bool(resumed["missing"] or (summary["device"] == "cpu" and not is_equal))


def resumed_text(summary: dict) -> str:
    """Returns how the resumed training differs from the uninterrupted one."""
    resumed = summary["resumed"]
    steps = resumed["steps"]
    if resumed["missing"]:
        return f"{resumed['missing']} of {steps} steps are missing"
    if resumed["different"]:
        text = (
            f"the losses differ in {resumed['different']} of {steps} steps, by up to "
            f"{resumed['largest']:.2g}"
        )
    elif resumed["equal_weights"]:
        return f"with equal losses in all {steps} steps and equal weights"
    else:
        text = "the weights differ"
    if summary["device"] == "cuda":
        text += "; kernels of a GPU may not be deterministic"
    return text
