"""Some minutes of a run on its own machines: uninterrupted, then stopped and resumed."""

import shutil
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..checkpoints.weights import read_checkpoint
from ..data.steps import batches_of_shards
from ..errors import InputError
from ..files import read_json
from ..plans.recipe import Recipe
from ..plans.recipe_files import with_settings
from ..plans.run import Run
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
