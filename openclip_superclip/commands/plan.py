"""A plan on one screen."""

import argparse
import json
import math
import os
import shlex
import textwrap

from ..errors import InputError
from ..pages import bytes_text
from ..runs.cost import A100_TFLOPS, CORE_GFLOPS
from ..runs.recipe import METHODS, Recipe
from ..runs.run import Run
from .options import add_recipe_options, all_settings

SHOWN = 10  # bad shards


LONGEST = 1000  # characters of a pattern


def plan_text(run: Run, cost: dict, memory: dict, checked: dict | None, rehearsed: dict | None) -> str:
    """Returns everything that is known of a plan; `checked` is None where the data was not looked at."""
    recipe = run.recipe
    lines = [
        f"{recipe.name}: {METHODS[recipe.method]}, {recipe.model}, {recipe.samples:,} samples of {recipe.data}",
        *_row("paper", paper_text(recipe) or "reproduces none of its values"),
        *_row("batch", _batch(run)),
        *_row("steps", _steps(run)),
        *_row("slices", _slices(run, cost)),
        *_row("compute", _compute(run, cost)),
        *_row("model", _model(cost)),
        *_row("memory", _memory(run, memory)),
        *(_row("rehearsed", _rehearsed(rehearsed)) if rehearsed else []),
        *_row("checkpoint", _checkpoints(run, cost)),
        *(line for warning in run.warnings for line in _row("warning", warning)),
        *_data(run, checked),
        "",
        _where(run),
        command_text(run),
    ]
    return "\n".join(lines)


def paper_text(recipe: Recipe) -> str:
    """Returns the paper's values of a recipe; "" where it reproduces none."""
    if recipe.paper is None:
        return ""
    values = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in recipe.paper["values"].items())
    return f"{recipe.paper['source']}{' (read off)' if recipe.paper['read_off'] else ''}: {values}"


def command_text(run: Run) -> str:
    """Returns the command for a shell, a few flags a line."""
    line = "superclip train"
    if run.world_size > 1:
        where = "--standalone"
        if run.nodes > 1:
            where = f"--nnodes {run.nodes} --node-rank $NODE --master-addr $HEAD --master-port 29500"
        line = f"torchrun {where} --nproc-per-node {run.gpus_per_node} -m openclip_superclip train --"
    lines = []
    for flag in _flags([*run.openclip_arguments(), "--logs", "runs", "--name", run.recipe.name]):
        if len(line) + len(flag) > 115:
            lines.append(line)
            line = " "
        line += f" {flag}"
    return " \\\n".join([*lines, line])


def _flags(arguments: list[str]) -> list[str]:
    """Returns each flag with its values as the shell reads them."""
    flags = []
    for argument in arguments:
        if argument.startswith("--"):
            flags.append(argument)
        else:
            flags[-1] += f" {shlex.quote(argument)}"
    return flags


def _row(label: str, text: str) -> list[str]:
    """Returns the lines of a row, wrapped."""
    indents = {"initial_indent": f"  {label:<12}", "subsequent_indent": " " * 14}
    return textwrap.wrap(text, 118, **indents, break_long_words=False, break_on_hyphens=False)


def _batch(run: Run) -> str:
    rank, ranks = ("GPU", "GPUs") if run.device == "cuda" else ("process", "processes")
    accumulated = f" × {run.accum_freq} accumulated" if run.accum_freq > 1 else ""
    return (
        f"{run.global_batch_size:,} = {run.batch_size:,} a {rank}{accumulated} × {run.world_size} {ranks} "
        f"({run.nodes} × {run.gpus_per_node})"
    )


def _steps(run: Run) -> str:
    recipe = run.recipe
    return (
        f"{run.steps:,}: {run.samples:,} samples, {run.samples / recipe.data_samples:.3g} × the data set; learning "
        f"rate {recipe.lr:g}, {recipe.schedule}, {recipe.warmup:,} steps of warm-up"
    )


def _slices(run: Run, cost: dict) -> str:
    minutes = f", {cost['slice_minutes']:.1f} minutes" if cost["slice_minutes"] else ""
    return (
        f"{run.num_slices}, {run.slices_per_pass} to a pass; a checkpoint after each, every {run.slice_steps:,} "
        f"steps{minutes}: what an interruption loses at most"
    )


def _compute(run: Run, cost: dict) -> str:
    flops = f"{cost['flops']:.2e} FLOPs, {cost['flops_per_sample'] / 1e9:,.1f} G a sample"
    if cost["samples_per_second"]:
        return f"{flops}; {_hours(run, cost)} at {cost['samples_per_second']:,.10g} samples/s"
    if run.device == "cpu":
        speeds = f"{CORE_GFLOPS[0]} to {CORE_GFLOPS[1]} GFLOPS, as measured in two small models"
        return f"{flops}; {_hours(run, cost)} on this machine's {os.cpu_count()} cores at {speeds}; {MEASURE}"
    peak = f"{cost['gpu_tflops']:g} TFLOPS per GPU"
    if cost["mfu"]:
        return f"{flops}; {_hours(run, cost)} at {cost['mfu']:.0%} of {peak}; {MEASURE}"
    low, high = cost["mfu_range"]
    source = "as in OpenCLIP's published runs on A100"
    if cost["gpu_tflops"] != A100_TFLOPS:
        source += ", the slow end halved since none is published on this GPU"
    return f"{flops}; {_hours(run, cost)} at {low:.0%} to {high:.0%} of {peak}, {source}; {MEASURE}"


def _hours(run: Run, cost: dict) -> str:
    fast, slow = cost["hours_range"]
    unit, factor = ("hours", 1) if slow >= 2 else ("minutes", 60)
    time = f"{slow * factor:,.3g}" if fast == slow else f"{fast * factor:,.3g} to {slow * factor:,.3g}"
    gpus = f", {cost['gpu_hours']:,.3g} GPU-hours{'' if fast == slow else ' at most'}" if run.device == "cuda" else ""
    return f"{time} {unit}{gpus}"


def _model(cost: dict) -> str:
    if "vocabulary" not in cost:
        return f"{cost['parameters']:,} parameters"
    return (
        f"{cost['parameters']:,} parameters, {cost['head_parameters']:,} of them the head's, for the vocabulary's "
        f"{cost['vocabulary']:,} tokens ({cost['ignored_tokens']} special ones left out)"
    )


def _memory(run: Run, memory: dict) -> str:
    if "unknown" in memory:
        return f"not known: {memory['unknown']}"
    parts = {name: memory[name] for name in ("weights", "gradients", "optimizer")}
    listed = ", ".join(f"{name} {bytes_text(size)}" for name, size in parts.items())
    text = f"{bytes_text(memory['peak'])} of tensors at the peak of a step ({listed})"
    if run.device == "cpu":
        return text
    if memory["gpu"]:
        return f"{text}; {memory['gpu']['name']} holds them, with a tenth left for what is no tensor"
    holders = ", ".join(memory["held_by"]) or "no GPU that --gpu knows; it says how many samples fit one"
    return f"{text}; held, with a tenth left for what is no tensor, by {holders}"


def _rehearsed(told: dict) -> str:
    hours, memory = told["hours"], told["memory"]
    return (
        f"{hours['low']:,.3g} to {hours['high']:,.3g} hours, checkpoints included; {bytes_text(memory['peak'])} at the "
        f"peak of a {memory['of']}; limited by {told['limit']}"
    )


def _checkpoints(run: Run, cost: dict) -> str:
    size, most = bytes_text(cost["checkpoint_bytes"]), bytes_text(cost["disk_bytes"])
    lasts = "" if run.is_table else " and each pass's last"
    return (
        f"{size}: weights, AdamW's moments and counts; superclip run keeps the two newest, one of every "
        f"{run.kept_every}{lasts}, {most} at most"
    )


def _data(run: Run, checked: dict | None) -> list[str]:
    if checked is None:
        return _row("data", f"{run.data}, the recipe's own: not checked; --data SHARDS looks at yours")
    if "rows" in checked:
        looked = "all pictures were read" if checked["full"] else "the first pictures were read"
        lines = _row("data", f"{run.data}: a table of {checked['rows']:,} pairs; {looked}")
        lines += [line for text in checked["warnings"] for line in _row("warning", text)]
        return lines + _bad("bad picture", checked["bad"])
    if checked["found"] is None:
        return [*_row("data", run.data), *(line for text in checked["warnings"] for line in _row("warning", text))]
    counted = f", {checked['samples']:,} samples counted" if checked["full"] else ""
    listed = f", {checked['samples_listed']:,} samples by sizes.json" if checked["samples_listed"] else ""
    looked = "all were read" if checked["full"] else "the first and the last were read"
    lines = _row(
        "data",
        f"{run.data}: {checked['found']:,} of {checked['shards']:,} shards are there, {bytes_text(checked['bytes'])}"
        f"{counted}{listed}; {looked}",
    )
    for warning in checked["warnings"]:
        lines += _row("warning", warning)
    lines += _bad("bad shard", checked["bad"])
    if checked["good"] and len(checked["good"]) > LONGEST:
        lines += _row("without bad", "a long pattern, which --json holds as data_check.good")
    elif checked["good"]:
        lines += _row("without bad", f"--data {shlex.quote(checked['good'])}")
    return lines


def _bad(label: str, found: list[dict]) -> list[str]:
    lines = [line for one in found[:SHOWN] for line in _row(label, f"{one['shard']}: {one['problem']}")]
    more = f"and {len(found) - SHOWN:,} more: --json lists all"
    return lines + (_row("", more) if len(found) > SHOWN else [])


def _where(run: Run) -> str:
    if run.nodes > 1:
        return f"On each node, $NODE from 0 to {run.nodes - 1}, $HEAD the first one's name:"
    return "The command, which superclip run gives:"


MEASURE = "superclip rehearse measures it"


def main(argv: list[str]) -> int:
    """Prints the plan and returns the exit code, 1 where --check finds a bad shard."""
    options = _parse(argv)
    from ..runs.cost import estimate_cost, estimate_memory, find_gpu
    from ..runs.plan import make_run, read_with_table

    if options.gpu is not None:
        options.gpu = find_gpu(options.gpu)
    gpu_tflops = options.gpu.tflops if options.gpu else None
    options.gpu_tflops = options.gpu_tflops or gpu_tflops or A100_TFLOPS
    recipe = read_with_table(options.recipe, all_settings(options), options.data)
    run = make_run(
        recipe, options.nodes, options.gpus_per_node, options.data, options.gpu_batch_max, options.workers,
        options.device,
    )  # fmt: skip
    looks = options.data is not None or options.check
    if not looks:
        run.warnings.extend(run.check_shards())
    rehearsed = None
    if options.rehearsal:
        from ..runs.rehearsal import read_rehearsal  # imports torch

        rehearsed = read_rehearsal(options.rehearsal, run, options.gpu)
    speed = rehearsed["samples_per_second"]["median"] if rehearsed else options.samples_per_second
    cost = estimate_cost(run, options.mfu, options.gpu_tflops, speed)
    memory = estimate_memory(run, options.gpu)
    checked = run.check_data(full=options.check, jobs=options.jobs) if looks else None
    if options.json:
        print(
            json.dumps(
                {**run.as_dict(), "cost": cost, "memory": memory, "rehearsal": rehearsed, "data_check": checked},
                indent=1,
            )
        )
    else:
        print(plan_text(run, cost, memory, checked, rehearsed))
    return 1 if options.check and checked["bad"] else 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip plan",
        description="Prints the whole plan of a run: OpenCLIP's command, batch arithmetic, steps, slices, FLOPs and "
        "sizes, and what is known of the data.",
        epilog="example: superclip plan datacomp1b/superclip_vit-b-16_512m_bs16k --nodes 4",
    )
    add_recipe_options(parser)
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--gpus-per-node", type=int, default=1, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--check",
        action="store_true",
        help="read all shards, not the first and the last; exit code 1 where one is bad",
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="processes that --check reads with (default: one per core)"
    )
    parser.add_argument(
        "--mfu", type=float, metavar="FRACTION",
        help="fraction of its peak that a GPU reaches, recomputation counted (default: what OpenCLIP's published runs "
        "reached with a model of this size)",
    )  # fmt: skip
    parser.add_argument(
        "--gpu-tflops", type=float, metavar="T",
        help=f"that peak, in 10^12 FLOPs a second (default: --gpu's in bfloat16, an A100's {A100_TFLOPS:g} without it)",
    )  # fmt: skip
    parser.add_argument(
        "--gpu", metavar="TYPE",
        help="refuse a batch that it cannot hold: A100-40, A100-80, H100-80, H200, L40S-48, or bytes such as 24GB",
    )  # fmt: skip
    parser.add_argument(
        "--samples-per-second", type=float, metavar="S", help="of all GPUs together, where you have measured it"
    )
    parser.add_argument(
        "--rehearsal", metavar="FILE", help="rehearsal.json of superclip rehearse, instead of what is assumed"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    for flag in ("mfu", "gpu_tflops", "samples_per_second", "jobs"):
        value = getattr(options, flag)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"--{flag.replace('_', '-')} is {value}; expected a number above 0")
    if options.jobs is not None and not options.check:
        raise InputError("--jobs does nothing without --check: add --check, or leave --jobs out")
    if options.gpu is not None and options.device == "cpu":
        raise InputError("--gpu does nothing with --device cpu: leave one of them out")
    if options.rehearsal and options.samples_per_second:
        raise InputError("--rehearsal holds the samples a second: leave --samples-per-second out")
    if options.mfu is not None and options.mfu > 1:
        raise InputError(f"--mfu is {options.mfu}; expected a fraction of the peak, 0.15 for 15%")
    return options
