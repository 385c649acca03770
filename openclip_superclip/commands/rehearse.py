"""superclip rehearse: trains a run for a few minutes on its own machines and estimates the whole
run."""

import shlex
import shutil
import statistics
from typing import TYPE_CHECKING

from ..errors import Parser, at_least, to_stderr
from ..files import check_results, write_json
from ..plans.run import Run
from ..rendering import bytes_text, significant
from ..runs.signals import Stopped, stopped_by_signals
from ..runs.slurm import find_placement
from .recipe_options import add_recipe_options, add_settings, opened_run
from .shared_options import add_folder, add_number

if TYPE_CHECKING:
    from ..runs.rehearsal import Rehearsal

MAX_WAITING = 0.1  # of the time: with more, the data is reported as the bottleneck
LOW_MEMORY = 0.5  # of a GPU: below it, a larger batch per GPU is proposed
# of samples per second, by the hours that follow
SPEEDS = {"low": "high", "median": "median", "high": "low"}


def main(argv: list[str]) -> int:
    """Rehearses, prints an estimate of the whole run and writes rehearsal.json.

    Returns the exit code, which is also 1 if the resumed training differs from the uninterrupted
    one.
    """
    parser = Parser(
        "rehearse",
        "Trains a recipe for a few minutes with the batch, precision, data and ranks of the "
        "whole run. Stops as at SLURM's SIGUSR1, resumes, compares the result with uninterrupted "
        "training, and prints the hours of the whole run, its bottleneck and what to change. "
        "Under srun, with one task per node, it uses all nodes.",
        "demo/superclip_demo-model_8k_bs64 --device cpu --steps 8",
    )
    add_recipe_options(parser, here=True)
    add_settings(parser, "engine")
    add_folder(parser, "--out", "new folder (default: runs/NAME-rehearsal)")
    add_number(parser, "--steps", 100, "steps of each of two slices, which are trained twice", "N")
    options = parser.parse_args(argv)
    at_least(options, nproc=1, steps=4)
    placement = find_placement()
    run, run_folder = opened_run(options, parser, placement, "-rehearsal")
    folder = run_folder.path
    from ..runs.rehearsal import Rehearsal, rehearsed_run
    from ..runs.unreadable import refuse_bad_files

    check_results(folder, ["rehearsal.json"], '"samples_per_second"')
    rehearsal = Rehearsal(rehearsed_run(run, options.steps), placement, folder)
    if placement.node == 0:
        rehearsal.check_folder()
        refuse_bad_files(run, run.check_data())
    try:
        with stopped_by_signals():
            code = rehearsal.train()
    except Stopped as stop:
        if placement.node:
            return 1
        to_stderr(f"superclip rehearse: stopped by {stop}; remove {folder} to start again")
        # a requeued job would have no more time
        return 1 if stop.before_time_is_up else stop.exit_code
    if code or placement.node:
        return code
    summary = report(run, rehearsal)
    rehearsal.remove_checkpoints()
    write_json(folder / "rehearsal.json", summary)
    machines = f"--nodes {run.nodes} --gpus-per-node {run.gpus_per_node} --device {run.device}"
    machines += f" --workers {run.workers} --gpu-batch-max {run.batch_size}"
    file = shlex.quote(f"{folder}/rehearsal.json")
    plan = f"superclip plan RECIPE {machines} --rehearsal {file}"
    print(f"\n{report_text(summary)}\n\n{plan} uses this estimate")
    if other := other_training(summary):
        to_stderr(
            f"superclip rehearse: the resumed training differs from the uninterrupted one: {other}"
        )
        return 1
    return 0


def report(run: Run, rehearsal: "Rehearsal") -> dict:
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
