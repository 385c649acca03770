"""Some minutes of a run as it will be, on the machines that will train it: undisturbed, then stopped and resumed."""

import contextlib
import dataclasses
import os
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from ..checkpoints import run_outputs
from ..checkpoints.checkpoint import read_checkpoint
from ..errors import InputError
from ..files import read_json
from ..pages import bytes_text
from .cost import GPU
from .folder import RunFolder
from .node import NodeTraining
from .plan import openclip_steps
from .process import STOPPED_BY, Stopped, stopped_by_signals
from .rank import measures_file
from .run import Run
from .slurm import Placement

SLICES = 2  # that are trained: it is stopped in the second
UNDISTURBED, DISTURBED = "undisturbed", "disturbed"  # folders of the rehearsal's, "-N" after its N-th interruption
WAITS = 0.1  # of the time for data: more is reported as what limits the run
ROOM = 0.5  # of a GPU's memory: below it a larger batch a GPU is tried
SPEEDS = {"low": "high", "median": "median", "high": "low"}  # of samples a second, by the hours that they make
OTHER_SIZE = 0.12  # of a GPU's memory: CUDA reports up to 7 % more than the data sheet; the next size is a fifth more
IRRELEVANT = (  # options of the training that change no step's time
    "--lr", "--warmup", "--lr-scheduler", "--lr-cooldown-end", "--lr-cooldown-power", "--epochs-cooldown", "--beta1",
    "--beta2", "--eps", "--wd", "--seed", "--epochs", "--train-num-samples", "--log-every-n-steps", "--val-data",
    "--val-frequency", "--val-num-samples", "--imagenet-val", "--imagenet-v2", "--zeroshot-frequency", "--pretrained",
    "--superclip-slices", "--superclip-weight", "--superclip-head-warmup",
)  # fmt: skip


def speed_options(run: Run) -> dict[str, str]:
    """Returns what the speed of a plan's training follows from, options by their names; "" where one has no value."""
    options = {"--nodes": str(run.nodes), "--gpus-per-node": str(run.gpus_per_node)}
    name = ""
    for argument in run.openclip_arguments():
        if argument.startswith("--"):
            name = argument
            options[name] = ""
        else:
            options[name] = f"{options[name]} {argument}".strip()
    return {name: value for name, value in options.items() if name not in IRRELEVANT}


def read_rehearsal(file: str, run: Run, gpu: GPU | None = None) -> dict:
    """Returns what rehearsal.json holds, its hours those of `plan`.

    InputError if it is none, or of another model, batch, precision, data, GPU, number of ranks, or whatever else
    changes the speed; if `gpu` is None any GPU is taken.
    """
    summary = read_json(Path(file), flag="--rehearsal")
    try:
        found = dict(summary["options"])
        summary |= whole_hours(run, summary["samples_per_second"], summary["checkpoint"]["seconds"])
        summary["memory"]["peak"], summary["memory"]["of"], summary["limit"]
        card, size = summary["memory"]["name"], summary["memory"]["total"]
    except (ValueError, TypeError, KeyError, ZeroDivisionError):
        raise InputError(f"--rehearsal: {file} is no rehearsal.json that superclip rehearse wrote") from None
    ours = speed_options(run)
    for name in ours | found:
        if ours.get(name) != found.get(name):
            there, here = (
                f"without {name}" if one.get(name) is None else f"with {name} {one[name]}".strip()
                for one in (found, ours)
            )
            raise InputError(
                f"--rehearsal: {file} was measured {there}, and the plan is {here}: give both the same, or rehearse "
                "this one"
            )
    if gpu and not _is(gpu, card, size):
        raise InputError(f"--rehearsal: {file} was measured on {card}, and --gpu is {gpu.name}: rehearse on that")
    return summary


def _is(gpu: GPU, card: str | None, size: int | None) -> bool:
    """Returns whether a card, as CUDA names it, is of a type, or of the bytes that stand for one."""
    kind = gpu.name.partition("-")[0].lower() if gpu.tflops else ""
    return card is not None and kind in card.lower().replace(" ", "") and abs(size / gpu.bytes - 1) < OTHER_SIZE


def whole_hours(run: Run, samples_per_second: dict[str, float], checkpoint_seconds: float) -> dict[str, dict]:
    """Returns `hours` and `gpu_hours` of a whole run, checkpoints included, each low, median and high."""
    saving = run.num_slices * checkpoint_seconds
    hours = {name: (run.samples / samples_per_second[speed] + saving) / 3600 for name, speed in SPEEDS.items()}
    return {"hours": hours, "gpu_hours": {name: number * run.world_size for name, number in hours.items()}}


class Rehearsal:
    """A rehearsal of `plan`, as rehearsed_run gives it, in a folder of its own that all nodes see.

    Args:
        interruptions: how often it was begun before, and ended by a failure of machines or by SLURM: it begins anew,
            in folders that no earlier start has written to.
    """

    def __init__(self, run: Run, placement: Placement, folder: Path, interruptions: int = 0):
        self.run, self.placement, self.folder = run, placement, folder
        self.suffix = f"-{interruptions}" if interruptions else ""
        self.logs = {}  # of the ranks, by the part of the rehearsal

    def train(self) -> int:
        """Trains undisturbed, then is stopped by SIGUSR1 and resumed; returns the exit code, 0 if all went well."""
        if code := self._train(UNDISTURBED, 0):
            return code
        code = self._train(DISTURBED, 1, stopped=True)
        if code and self.placement.node == 0:  # on others because the first one's ranks were stopped
            return code
        if code == 0 or run_outputs.newest(self._path(DISTURBED) / "checkpoints") == SLICES:
            raise InputError(
                "--steps: training was to be stopped by SIGUSR1 in its second slice, and ended first; give more"
            )
        return self._train(DISTURBED, 2)

    def differences(self) -> dict:
        """Returns in how many logged losses, and by how much, the resumed training differs from the undisturbed one.

        `repeats` says whether it was equal up to where it was stopped, in losses and weights.
        """
        ours, theirs = self._losses(DISTURBED), self._losses(UNDISTURBED)
        gaps = {
            samples: max((abs(a - b) for a, b in zip(ours[samples], theirs[samples], strict=True)), default=0)
            for samples in theirs
            if samples in ours
        }
        first_slice = [gap for samples, gap in gaps.items() if samples <= self.run.slice_samples]
        return {
            "steps": len(theirs), "different": sum(map(bool, gaps.values())), "missing": len(theirs) - len(gaps),
            "largest": max(gaps.values(), default=0), "equal_weights": self._equal_weights(SLICES),
            "repeats": not any(first_slice) and self._equal_weights(1),
        }  # fmt: skip

    def speeds(self) -> list[tuple[float, float]]:
        """Returns samples a second and the fraction of time spent waiting for data, of the undisturbed steps.

        The first quarter of each slice, in which workers and GPUs warm up, is left out.
        """
        found, batch = [], self.run.global_batch_size
        for point in self._points(UNDISTURBED):
            step = point["samples"] % point["epoch_samples"] or point["epoch_samples"]
            if step > self.run.slice_steps // 4 * batch:
                speed = point["samples_per_second"]
                found.append((speed, min(1.0, point["data_seconds"] * speed / batch)))
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
        training = NodeTraining(self.run, placement, folder, measures=True)
        self.logs[name] = training.logs
        with _signals_as_before(), _stopped_in_the_second_slice(folder) if stopped else contextlib.nullcontext():
            try:
                with stopped_by_signals():
                    return training.train()
            except Stopped as stop:
                if not (stopped and stop.before_time_is_up):
                    raise
                return None

    def _points(self, name: str) -> list[dict]:
        return run_outputs.read_log(self._path(name) / "out.log")

    def _losses(self, name: str) -> dict[int, list[float]]:
        """Returns the losses by the samples that were seen."""
        return {
            point["samples"]: [value for key, value in point.items() if key.endswith("loss")]
            for point in self._points(name)
        }

    def _equal_weights(self, epoch: int) -> bool:
        file = f"checkpoints/epoch_{epoch}.pt"
        ours, theirs = (read_checkpoint(self._path(name) / file).weights for name in (DISTURBED, UNDISTURBED))
        return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def report(run: Run, rehearsal: Rehearsal) -> dict:
    """Returns what rehearsal.json holds; `run` is the whole one."""
    logs = rehearsal.logs[UNDISTURBED]
    ranks = [read_json(measures_file(logs, rank)) for rank in range(run.world_size)]
    steps = rehearsal.speeds()
    speeds = sorted(speed for speed, _ in steps)
    low, median, high = (speeds[round(place * (len(speeds) - 1))] for place in (0.1, 0.5, 0.9))
    speed = {"low": low, "median": median, "high": high}
    checkpoint = max(ranks[0]["checkpoints"], key=lambda one: one["seconds"])
    memory = max((rank["memory"] for rank in ranks), key=lambda memory: memory["peak"])
    waiting = None if run.accum_freq > 1 else statistics.fmean(waiting for _, waiting in steps)
    return {
        "recipe": run.recipe.name,
        "model": run.recipe.model,
        "device": run.device,
        **{name: getattr(run, name) for name in (
            "world_size", "nodes", "gpus_per_node", "global_batch_size", "batch_size", "accum_freq", "workers",
        )},
        "options": speed_options(run),
        "rehearsed_steps": len(steps),
        "samples_per_second": speed,
        "waiting_for_data": waiting,
        "memory": memory,
        "checkpoint": {**checkpoint, "at_most": run.max_checkpoints},
        "disk_free": shutil.disk_usage(rehearsal.folder).free,
        "resumed": rehearsal.differences(),
        **whole_hours(run, speed, checkpoint["seconds"]),
        "limit": _limit(run, waiting or 0, memory),
    }  # fmt: skip


def _limit(run: Run, waiting: float, memory: dict) -> str:
    """Returns what limits the run, and what to change."""
    if waiting > WAITS:
        return (
            f"the data: {waiting:.0%} of the time is spent waiting for it; give more --workers than {run.workers} "
            "if there are CPUs for them, or faster storage"
        )
    if run.accum_freq > 1 and memory["total"] and memory["peak"] < ROOM * memory["total"]:
        return (
            f"accumulation: a GPU's memory is filled to {memory['peak'] / memory['total']:.0%}; try --gpu-batch-max "
            f"{2 * run.batch_size}"
        )
    return "computing: the data does not hold it up"


def report_text(summary: dict) -> str:
    """Returns a report on one screen."""
    speed, hours, memory, checkpoint = (
        summary[name] for name in ("samples_per_second", "hours", "memory", "checkpoint")
    )
    needed, waiting = checkpoint["at_most"] * checkpoint["bytes"], summary["waiting_for_data"]
    of = f" of {bytes_text(memory['total'])}" if memory["total"] else ""
    lines = {
        "speed": f"{speed['median']:,.4g} samples/s, {speed['low']:,.4g} to {speed['high']:,.4g} in 8 of 10 steps",
        "data": "not known with --accum-freq" if waiting is None else f"{waiting:.1%} of the time waits for it",
        "memory": f"{bytes_text(memory['peak'])}{of} at the peak of a {memory['of']}",
        "checkpoint": f"{checkpoint['seconds']:.2g} s, {bytes_text(checkpoint['bytes'])}; {checkpoint['at_most']} at "
        f"most are {bytes_text(needed)}, and {bytes_text(summary['disk_free'])} are free",
        "resumed": f"NOT as it was: {other}" if (other := other_training(summary)) else _resumed(summary),
        "whole run": f"{hours['median']:,.3g} hours ({hours['low']:,.3g} to {hours['high']:,.3g}), "
        f"{summary['gpu_hours']['median']:,.3g} {'GPU' if summary['device'] == 'cuda' else 'process'}-hours",
        "limit": summary["limit"],
    }  # fmt: skip
    if needed > summary["disk_free"]:
        lines["warning"] = "the disk will be full before the run ends"
    return "\n".join([f"rehearsal of {summary['recipe']}:", *(f"  {name:<12}{text}" for name, text in lines.items())])


def other_training(summary: dict) -> str:
    """Returns in what the resumed training differs from the undisturbed one if that is an error, "" otherwise.

    A GPU whose kernels do not repeat their sums shows that before the training is stopped, and proves nothing then.
    """
    resumed = summary["resumed"]
    if resumed["missing"]:
        return f"{resumed['missing']} of {resumed['steps']} steps were not trained again"
    return "" if summary["device"] == "cuda" and not resumed["repeats"] else _differences(resumed)


def _differences(resumed: dict) -> str:
    steps, different = resumed["steps"], resumed["different"]
    losses = f"other losses in {different} of {steps} steps, by {resumed['largest']:.2g} at most" if different else ""
    return ", ".join(filter(None, [losses, "" if resumed["equal_weights"] else "other weights"]))


def _resumed(summary: dict) -> str:
    if differences := _differences(summary["resumed"]):
        return f"{differences}; they differ before SIGUSR1 as well: this GPU's kernels do not repeat their sums"
    return f"after SIGUSR1, with equal losses in all {summary['resumed']['steps']} steps and equal weights"


def rehearsed_run(run: Run, steps: int) -> Run:
    """Returns a plan's two first slices of about so many steps each, with the same batch, ranks, workers and data."""
    if run.is_table:
        raise InputError(f"--data: {run.data} is a table, which is trained in whole passes; a rehearsal takes shards")
    recipe = run.recipe.with_flags(**{"log-every-n-steps": 1})
    slice_samples = min(steps * run.global_batch_size, run.slice_samples)
    slice_steps = openclip_steps(slice_samples, run.batch_size, run.world_size, run.workers, run.accum_freq)
    return dataclasses.replace(
        run, recipe=recipe, slice_samples=slice_samples, slice_steps=slice_steps, num_slices=SLICES, warnings=[]
    )


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
            if run_outputs.newest(folder.checkpoints) >= 1:
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
