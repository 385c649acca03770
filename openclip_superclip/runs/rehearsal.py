"""Some minutes of a run on its own machines: two short slices, and an estimate of the whole run."""

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
from .progress import read_log
from .slurm import Placement

TRAINED = "whole"  # the folder of the shortened run, in the rehearsal's


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
        attempts = RunFolder(self.folder / TRAINED).attempts
        if attempts and not (
            self.placement.restarts and attempts[0].get("job") == self.placement.job
        ):
            raise InputError(
                f"--out: {self.folder} contains a rehearsal: remove it, or give --out another "
                "folder"
            )

    @property
    def trained(self) -> RunFolder:
        """The folder of this start's run."""
        restarts = self.placement.restarts
        return RunFolder(self.folder / (f"{TRAINED}-{restarts}" if restarts else TRAINED))


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
        num_slices=2,
        warnings=[],
    )


def report(run: Run, rehearsal: Rehearsal) -> dict:
    """Returns the content of rehearsal.json; `run` is the whole one."""
    trained = rehearsal.trained
    steps = read_log(trained.path / "out.log")
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
    logs = trained.path / trained.attempts[-1]["ranks"]
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
        "checkpoint_bytes": (trained.checkpoints / "epoch_1.pt").stat().st_size,
        "seconds_between_slices": pause,
        "hours": (run.samples / speed + run.num_slices * pause) / 3600,
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
        "whole run": f"{significant(summary['hours'], 2)} hours, "
        f"{significant(summary['hours'] * world_size, 2)} {unit}-hours",
    }
    texts = [f"  {name:<12}{text}" for name, text in lines.items()]
    return "\n".join([f"rehearsal of {summary['recipe']}:", *texts])
