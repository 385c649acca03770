"""What a rehearsal tells of the whole run: hours with their spread, what limits it, and what to change."""

import json
import shutil
import statistics

from ..planning.cost import estimate_cost
from ..planning.plan import Plan
from ..planning.plan_summary import bytes_text
from ..planning.rehearsed import speed_options, whole_hours
from .rank_measures import measures_file
from .rehearsal import UNDISTURBED, Rehearsal

WAITS = 0.1  # of the time for data: more is told as what limits the run
SUMS = 0.2  # of a step's time for the gradients' sum
ROOM = 0.5  # of a GPU's memory: below it a larger batch a GPU is tried


def report(plan: Plan, rehearsal: Rehearsal) -> dict:
    """Returns what rehearsal.json holds; `plan` is that of the whole run. Raises OSError where a rank left nothing."""
    logs = rehearsal.logs[UNDISTURBED]
    ranks = [json.loads(measures_file(logs, rank).read_text()) for rank in range(plan.world_size)]
    steps = rehearsal.speeds()
    speeds = sorted(speed for speed, _ in steps)
    low, median, high = (speeds[round(share * (len(speeds) - 1))] for share in (0.1, 0.5, 0.9))
    checkpoint = max(ranks[0]["checkpoints"], key=lambda one: one["seconds"])
    sums = ranks[0]["all_reduce"]
    told = {
        "recipe": plan.recipe.name,
        "model": plan.recipe.model,
        "device": plan.device,
        **{name: getattr(plan, name) for name in (
            "world_size", "nodes", "gpus_per_node", "global_batch_size", "batch_size", "accum_freq", "workers",
        )},
        "options": speed_options(plan),
        "rehearsed_steps": len(steps),
        "samples_per_second": {"low": low, "median": median, "high": high},
        "waiting_for_data": None if plan.accum_freq > 1 else statistics.fmean(share for _, share in steps),
        "memory": max((rank["memory"] for rank in ranks), key=lambda memory: memory["peak"]),
        "all_reduce_bytes_per_second": sums["bytes"] / statistics.median(sums["seconds"]) if sums else None,
        "checkpoint": {**checkpoint, "at_most": plan.most_checkpoints},
        "disk_free": shutil.disk_usage(rehearsal.folder).free,
        "resumed": rehearsal.differences(),
    }  # fmt: skip
    told |= whole_hours(plan, told["samples_per_second"], checkpoint["seconds"])
    return told | {"limit": _limit(plan, told)}


def _limit(plan: Plan, told: dict) -> str:
    """Returns what limits the run, and what to change."""
    seconds = plan.global_batch_size / told["samples_per_second"]["median"]
    waiting, memory = told["waiting_for_data"] or 0, told["memory"]
    if waiting > WAITS:
        return (
            f"the data: {waiting:.0%} of the time is spent waiting for it; give more --workers than {plan.workers} "
            "where there are CPUs for them, or faster storage"
        )
    if told["all_reduce_bytes_per_second"]:
        cost = estimate_cost(plan, mfu=1, gpu_tflops=1)
        share = 4 * cost["parameters"] / told["all_reduce_bytes_per_second"] / seconds
        if share > SUMS:
            return (
                f"the sums over the ranks: those of the gradients take as long as {share:.0%} of a step; fewer nodes, "
                "or a larger batch on each GPU, make them fewer"
            )
    if plan.accum_freq > 1 and memory["total"] and memory["peak"] < ROOM * memory["total"]:
        return (
            f"accumulation: a GPU's memory is filled to {memory['peak'] / memory['total']:.0%}; try --gpu-batch-max "
            f"{2 * plan.batch_size}"
        )
    return "computing: neither data nor sums over the ranks hold it up"


def report_text(told: dict) -> str:
    """Returns a report on one screen."""
    speed, hours, memory, resumed = (told[name] for name in ("samples_per_second", "hours", "memory", "resumed"))
    checkpoint = told["checkpoint"]
    needed = checkpoint["at_most"] * checkpoint["bytes"]
    of = f" of {bytes_text(memory['total'])}" if memory["total"] else ""
    waiting, sums = told["waiting_for_data"], told["all_reduce_bytes_per_second"]
    lines = {
        "speed": f"{speed['median']:,.4g} samples/s, {speed['low']:,.4g} to {speed['high']:,.4g} in 8 of 10 steps",
        "data": "not known: OpenCLIP cannot tell it with --accum-freq" if waiting is None
        else f"{waiting:.1%} of the time is spent waiting for it",
        "memory": f"{bytes_text(memory['peak'])}{of} at the peak of a {memory['of']}",
        "sums": f"{bytes_text(round(sums))}/s summed over {told['world_size']} ranks" if sums else "one rank",
        "checkpoint": f"{checkpoint['seconds']:.2g} s, {bytes_text(checkpoint['bytes'])}; {checkpoint['at_most']} at "
        f"most are {bytes_text(needed)}, and {bytes_text(told['disk_free'])} are free",
        "resumed": _resumed(resumed, told["device"]),
        "whole run": f"{hours['median']:,.3g} hours ({hours['low']:,.3g} to {hours['high']:,.3g}), "
        f"{told['gpu_hours']['median']:,.3g} {'GPU' if told['device'] == 'cuda' else 'process'}-hours",
        "limit": told["limit"],
    }  # fmt: skip
    if needed > told["disk_free"]:
        lines["warning"] = "the disk will be full before the run ends"
    return "\n".join([f"rehearsal of {told['recipe']}:", *(f"  {name:<12}{text}" for name, text in lines.items())])


def other_training(told: dict) -> str:
    """Returns in what the resumed training differs from the undisturbed one where that is an error, "" elsewhere.

    A GPU whose kernels do not repeat their sums shows that before the training is stopped, and proves nothing then.
    """
    resumed = told["resumed"]
    if resumed["missing"]:
        return f"{resumed['missing']} of {resumed['steps']} steps were not trained again"
    differ = _differ(resumed)
    return "" if told["device"] == "cuda" and not resumed["repeats"] else differ


def _differ(resumed: dict) -> str:
    """Returns in what losses and weights differ, "" where they are equal."""
    steps, different = resumed["steps"], resumed["different"]
    losses = f"other losses in {different} of {steps} steps, by {resumed['largest']:.2g} at most" if different else ""
    return ", ".join(filter(None, [losses, "" if resumed["equal_weights"] else "other weights"]))


def _resumed(resumed: dict, device: str) -> str:
    if resumed["missing"]:
        return f"NOT as it was: {resumed['missing']} of {resumed['steps']} steps were not trained again"
    differ = _differ(resumed)
    if not differ:
        return f"after SIGUSR1, with equal losses in all {resumed['steps']} steps and equal weights"
    if resumed["repeats"]:
        return f"NOT as it was: {differ}"
    kernels = " (kernels of a GPU that do not repeat their sums)" if device == "cuda" else ""
    return f"{differ}; they differ before SIGUSR1 as well: two equal trainings do not agree here{kernels}"
