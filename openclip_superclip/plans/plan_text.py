"""The text of a plan."""

import os
import re
import shlex
import textwrap

from ..data.data_check import DataCheck
from ..data.tables import is_table
from ..rendering import bytes_text, significant
from .cost import A100_TFLOPS
from .recipe import METHODS, Recipe
from .run import Run


def plan_text(run: Run, cost: dict, check: DataCheck | None = None) -> str:
    """Returns all information on a plan; `check` is None if the data was not read."""
    recipe = run.recipe
    rows = [
        ("paper", _paper(recipe)),
        ("batch", _batch(run)),
        ("steps", _steps(run)),
        ("slices", _slices(run, cost)),
        ("compute", _compute(run, cost)),
        ("model", _model(cost)),
        ("memory", _memory(cost["memory_bytes"])),
        ("checkpoint", _checkpoints(run, cost)),
        *(("warning", warning) for warning in run.warnings),
        *(_not_checked(run) if check is None else data_rows(run.data, check)),
    ]
    intro = "OpenCLIP's command, which superclip run starts:"
    if run.nodes > 1:
        intro = (
            f"On each node, with $NODE from 0 to {run.nodes - 1} and $HEAD the name of the "
            "first node:"
        )
    title = (
        f"{recipe.name}: {METHODS[recipe.method]}, {recipe.model}, {recipe.samples:,} "
        f"samples of {recipe.data}"
    )
    return "\n".join([title, *lines_of(rows), "", intro, command_text(run)])


def lines_of(rows: list[tuple[str, str]]) -> list[str]:
    """Returns labels and texts as lines that fit a terminal."""
    wrapper = textwrap.TextWrapper(
        118, subsequent_indent=" " * 14, break_long_words=False, break_on_hyphens=False
    )
    return [wrapper.fill(f"  {label:<12}{text}") for label, text in rows]


def _paper(recipe: Recipe) -> str:
    if not recipe.paper:
        return "reproduces none of its values"
    values = [f"{name.replace('_', ' ')} {value}" for name, value in recipe.paper["values"].items()]
    read_off = " (read off)" if recipe.paper["read_off"] else ""
    return f"{recipe.paper['source']}{read_off}: {', '.join(values)}"


def _batch(run: Run) -> str:
    rank = "GPU" if run.device == "cuda" else "process"
    accumulated = f" × {run.accum_freq} accumulated" if run.accum_freq > 1 else ""
    return (
        f"{run.global_batch_size:,} = {run.batch_size:,} per {rank}{accumulated} × "
        f"{run.world_size} ({run.gpus_per_node} per node)"
    )


def _steps(run: Run) -> str:
    recipe = run.recipe
    return (
        f"{run.steps:,}: {run.samples:,} samples, {significant(run.samples / recipe.data_samples)} "
        f"× the data set; learning rate {recipe.lr:g}, {recipe.schedule}, {recipe.warmup:,} steps "
        "of warm-up"
    )


def _slices(run: Run, cost: dict) -> str:
    recipe = run.recipe
    part = f"1/{recipe.slices} of the data set" if recipe.slices > 1 else "the data set"
    return (
        f"{run.num_slices}, each on {run.slice_steps * recipe.global_batch_size:,} of the "
        f"{recipe.data_samples // recipe.slices:,} samples in {part}; a checkpoint after each, "
        f"every {run.slice_steps:,} steps, {duration(cost['slice_hours'])}: the most that an "
        "interruption loses"
    )


def duration(hours: float) -> str:
    """Returns hours as hours or, if they are few, minutes."""
    if hours >= 2:
        return f"{significant(hours, 2)} hours"
    return f"{significant(60 * hours, 2)} minutes"


def _model(cost: dict) -> str:
    text = f"{cost['parameters']:,} parameters"
    in_head = cost["head_parameters"]
    return f"{text}, {in_head:,} of them in the class head" if in_head else text


def _checkpoints(run: Run, cost: dict) -> str:
    pass_ends = "" if run.is_table else " and the last of each pass"
    kept = f"the two newest, one of every {run.kept_every}{pass_ends}"
    if run.kept_every == 1:
        kept = "all"
    return (
        f"{bytes_text(cost['checkpoint_bytes'])} with AdamW's moments; superclip run keeps {kept}: "
        f"at most {bytes_text(cost['disk_bytes'])}"
    )


def command_text(run: Run) -> str:
    """Returns the shell command with a few flags per line."""
    launcher = "superclip train"
    if run.world_size > 1:
        nodes = "--standalone"
        if run.nodes > 1:
            nodes = (
                f"--nnodes {run.nodes} --node-rank $NODE --master-addr $HEAD --master-port 29500"
            )
        launcher = (
            f"torchrun {nodes} --nproc-per-node {run.gpus_per_node} -m openclip_superclip train --"
        )
    arguments = [*run.openclip_arguments(), "--logs", "runs", "--name", run.recipe.name]
    lines = [launcher]
    for flag in re.split(r" (?=--)", shlex.join(arguments)):
        if len(lines[-1]) + len(flag) > 115:
            lines.append(" ")
        lines[-1] += f" {flag}"
    return " \\\n".join(lines)


def _compute(run: Run, cost: dict) -> str:
    text = f"{cost['flops']:.2e} FLOPs; {duration(cost['hours'])}"
    if run.device == "cuda":
        text += f", {significant(cost['gpu_hours'], 2)} GPU-hours"
    if cost["samples_per_second"]:
        return f"{text} at {cost['samples_per_second']:,.10g} samples/s"
    if run.device == "cpu":
        return (
            f"{text} on this machine's {os.cpu_count()} cores at {cost['core_gflops']} GFLOPS, as "
            "measured with a small model; superclip run --rehearse measures it"
        )
    slower = " in bfloat16 (this run's fp32 is slower)" if run.recipe.precision == "fp32" else ""
    return (
        f"{text} at {cost['utilization']:.0%} of {A100_TFLOPS:g} TFLOPS per GPU{slower}, as in the "
        "slowest of OpenCLIP's published runs on A100; superclip run --rehearse measures it"
    )


def _memory(num_bytes: dict) -> str:
    parts = [f"{part} {bytes_text(num_bytes[part])}" for part in ("weights", "gradients")]
    parts.append(f"AdamW's moments {bytes_text(num_bytes['optimizer'])}")
    text = ", ".join(parts)
    if num_bytes["head"]:
        text += f"; of these, the class head {bytes_text(num_bytes['head'])}"
    return f"{text}. Activations and copies of the gradients come on top: a rehearsal measures them"


def _not_checked(run: Run) -> list[tuple[str, str]]:
    default = ", the recipe's default" if run.data == run.recipe.shards else ""
    return [("data", f"{run.data}{default}: not checked; superclip plan --data DATA checks it")]


def data_rows(data: str, check: DataCheck) -> list[tuple[str, str]]:
    """Returns rows on the data: contents, warnings, and bad files."""
    facts = []
    if is_table(data):
        facts.append(
            f"a table of {check.num_samples:,} pairs; {check.num_checked:,} images were checked"
        )
    elif check.num_found is not None:
        size = bytes_text(check.num_bytes)
        facts.append(f"{check.num_found:,} of {check.num_shards:,} shards exist, {size}")
        if check.full:
            facts.append(f"{check.num_samples:,} samples counted")
        if check.num_listed:
            facts.append(f"{check.num_listed:,} samples by sizes.json")
        facts.append("all were read" if check.full else "a few were opened")
    rows = [("data", f"{data}: {'; '.join(facts)}" if facts else data)]
    rows += [("warning", warning) for warning in check.warnings]
    kind = "image" if is_table(data) else "shard"
    return rows + [(f"bad {kind}", f"{file.file}: {file.problem}") for file in check.bad]
