"""Some minutes of a run as it will be, on the machines that will train it: undisturbed, then stopped and resumed."""

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from ..checkpoints.checkpoint import read_checkpoint
from ..errors import InputError
from ..planning.plan import Plan, openclip_steps
from ..planning.recipe_settings import with_settings
from . import checkpoint_files
from .node_run import NodeRun
from .placement import Placement
from .rank_measures import ASKED
from .run_folder import RunFolder
from .stop_signals import STOPPED_BY, Stopped, stopped_by_signals

SLICES = 2  # that are trained: it is stopped in the second
UNDISTURBED, DISTURBED = "undisturbed", "disturbed"  # folders of the rehearsal's, "-N" after its N-th interruption
STEP = re.compile(
    r"Train Epoch: (?P<epoch>\d+) \[ *(?P<samples>\d+)/.*Data \(t\): (?P<data>[\d.]+) Batch \(t\): [\d.]+, "
    r"(?P<speed>[\d.e+]+)/s,.*Logit Scale: [\d.]+ (?P<losses>.*)"
)


def rehearsed_plan(plan: Plan, steps: int) -> Plan:
    """Returns a plan's two first slices of about so many steps each, with the same batch, ranks, workers and data."""
    if plan.is_table:
        raise InputError(f"--data: {plan.data} is a table, which is trained in whole passes; a rehearsal takes shards")
    recipe = dataclasses.replace(
        plan.recipe,
        flags={**plan.recipe.flags, "log-every-n-steps": 1},
        text=with_settings(plan.recipe.text, {"flags.log-every-n-steps": "1"}),
    )
    slice_samples = min(steps * plan.global_batch_size, plan.slice_samples)
    slice_steps = openclip_steps(slice_samples, plan.batch_size, plan.world_size, plan.workers, plan.accum_freq)
    return dataclasses.replace(
        plan, recipe=recipe, slice_samples=slice_samples, slice_steps=slice_steps, num_slices=SLICES, warnings=[]
    )


class Rehearsal:
    """A rehearsal of `plan`, as rehearsed_plan gives it, in a folder of its own that all nodes see.

    Args:
        interruptions: how often it was begun before, and ended by a failure of machines or by SLURM: it begins anew,
            in folders that no earlier start has written to.
    """

    def __init__(
        self, plan: Plan, placement: Placement, folder: Path, engine: str = "torchrun", interruptions: int = 0
    ):
        self.plan, self.placement, self.engine = plan, placement, engine
        self.folder = folder
        self.suffix = f"-{interruptions}" if interruptions else ""
        self.logs = {}  # of the ranks, by the part of the rehearsal

    def run(self) -> int:
        """Trains undisturbed, then is stopped by SIGUSR1 and resumed; returns the exit code, 0 where all went well."""
        os.environ[ASKED] = "1"
        if code := self._train(UNDISTURBED, 0):
            return code
        code = self._train(DISTURBED, 1, stopped=True)
        if code and self.placement.node == 0:  # on others it is told of the first one's ranks that were stopped
            return code
        if code == 0:
            raise InputError(
                "--steps: training was to be stopped by SIGUSR1 in its second slice, and ended first; give more"
            )
        return self._train(DISTURBED, 2)

    def differences(self) -> dict:
        """Returns in how many logged losses, and by how much, the resumed training differs from the undisturbed one.

        `repeats` tells whether it was equal up to where it was stopped, in losses and weights.
        """
        ours, theirs = (self._losses(name) for name in (DISTURBED, UNDISTURBED))
        pairs = [(ours.get(step), losses) for step, losses in theirs.items()]
        different = [pair for pair in pairs if pair[0] != pair[1]]
        largest = max(
            (abs(a - b) for one, other in different if one for a, b in zip(one, other, strict=True)), default=0
        )
        missing = sum(one is None for one, _ in pairs)
        repeats = all(ours.get(step) == losses for step, losses in theirs.items() if step[0] == 0)
        return {
            "steps": len(pairs), "different": len(different), "missing": missing, "largest": largest,
            "equal_weights": self._equal_weights(SLICES), "repeats": repeats and self._equal_weights(1),
        }  # fmt: skip

    def speeds(self) -> list[tuple[float, float]]:
        """Returns samples a second and the share of time that waited for data of each step of the undisturbed training.

        The first quarter of each slice, in which workers and GPUs warm up, is left out.
        """
        found = []
        for match in self._steps(UNDISTURBED):
            step = int(match["samples"]) // self.plan.global_batch_size
            if step > self.plan.slice_steps // 4:
                speed = float(match["speed"])
                found.append((speed, min(1.0, float(match["data"]) * speed / self.plan.global_batch_size)))
        return found

    def remove_checkpoints(self) -> None:
        for checkpoints in self.folder.glob("*disturbed*/checkpoints"):
            shutil.rmtree(checkpoints, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{self.suffix}"

    def _train(self, name: str, part: int, stopped: bool = False) -> int | None:
        """Returns the exit code, None where training was `stopped` as it was to be."""
        folder, placement = RunFolder(self._path(name)), self.placement
        if placement.num_nodes > 1:  # a start of its own on every node
            placement = dataclasses.replace(
                placement, step=f"{placement.step}-{part}", master_port=placement.master_port + part
            )
        run = NodeRun(self.plan, placement, folder, {}, self.engine)
        self.logs[name] = run.logs
        with _signals_as_before(), _stopped_in_the_second_slice(folder) if stopped else contextlib.nullcontext():
            try:
                with stopped_by_signals():
                    return run.run()
            except Stopped as stop:
                if not (stopped and stop.before_time_is_up):
                    raise
                return None

    def _steps(self, name: str) -> Iterator[re.Match]:
        text = (self._path(name) / "out.log").read_text(errors="replace")
        return filter(None, map(STEP.search, text.splitlines()))

    def _losses(self, name: str) -> dict[tuple[int, int], list[float]]:
        """Returns the losses of each step as they were logged last: a slice that was stopped is trained again."""
        return {
            (int(match["epoch"]), int(match["samples"])): [
                float(value) for value in re.findall(r"[Ll]oss: ([-\d.e+na]+)", match["losses"])
            ]
            for match in self._steps(name)
        }

    def _equal_weights(self, epoch: int) -> bool:
        file = f"checkpoints/epoch_{epoch}.pt"
        ours, theirs = (read_checkpoint(self._path(name) / file).weights for name in (DISTURBED, UNDISTURBED))
        return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@contextlib.contextmanager
def _signals_as_before() -> Iterator[None]:
    """Puts the handlers back that a training which was stopped has taken away."""
    before = {each: signal.getsignal(each) for each in STOPPED_BY}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def _stopped_in_the_second_slice(folder: RunFolder) -> Iterator[None]:
    """Within it this process is sent SIGUSR1, as before a job's time is up, once the first slice is saved."""
    ended = threading.Event()

    def wait() -> None:
        while not ended.wait(0.2):
            if checkpoint_files.newest(folder.checkpoints) >= 1:
                time.sleep(0.2)
                if not ended.is_set():
                    os.kill(os.getpid(), signal.SIGUSR1)
                return

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
