"""All that only the device can tell, within ten minutes."""

import importlib.util
import json
import os
import shlex
import time
from pathlib import Path
from typing import NamedTuple

import torch

from ..environment import check_device, versions
from ..errors import InputError
from ..files import make_folder, write_json
from ..pages import markdown_table
from ..runs.process import run_superclip
from .noise_data import write_noise_classes, write_noise_shards

RECIPE = "demo/superclip_demo-model_8k_bs64"  # whose data, model, precision and batch are set


STEPS, SHARDS = 16, 32  # of the rehearsal


class EverythingSettings(NamedTuple):
    """What is measured: the options of the same names."""

    device: str
    precision: str
    model: str
    vocab: int
    width: int
    local_batches: list[int]
    repeats: int
    step_repeats: int
    picture_size: int
    minutes: float
    out: Path


class Part(NamedTuple):
    """One command, and where its results are."""

    name: str
    arguments: list[str]
    results: Path


def measure_everything(settings: EverythingSettings) -> dict:
    """Runs the parts in turn, each a `superclip` command, and returns what everything.json holds.

    A part that fails or is still running when the time is up is told as that, and the next ones go on.
    """
    check_device(settings.device)
    device = torch.device(settings.device).type
    make_folder(settings.out, "--out")
    if (settings.out / "everything.json").exists():
        raise InputError(f"--out: {settings.out} holds everything.json: give another folder")
    start = time.monotonic()
    report = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "devices": torch.cuda.device_count() if device == "cuda" else os.cpu_count(),
        "versions": versions("python", "openclip-superclip", "open_clip_torch", "torch"),
        "parts": [],
    }

    def over() -> bool:
        return time.monotonic() - start > 60 * settings.minutes

    for part in _parts(settings, device):
        began = time.monotonic()
        log = settings.out / f"{part.name}.log"
        print(f"superclip benchmark: {part.name}", flush=True)
        code = None if over() else run_superclip(part.arguments, log, one_thread=False, is_to_stop=over)[0]
        report["parts"].append(_told(part, code, log, time.monotonic() - began, over()))
        write_json(settings.out / "everything.json", report)
    return report


def _parts(settings: EverythingSettings, device: str) -> list[Part]:
    out, num_processes = settings.out, max(1, torch.cuda.device_count()) if device == "cuda" else 2
    common = ["--device", settings.device, "--precision", settings.precision, "--model", settings.model]
    sizes = ["--vocab", settings.vocab, "--width", settings.width, "--repeats", settings.repeats]
    sizes += ["--step-repeats", settings.step_repeats, "--step-memory", "--grad-checkpointing"]
    parts = []
    for batch in settings.local_batches:
        folder = out / f"local-{batch}"
        batches = ["--head-batch", batch, "--local-batch", batch, "--out", folder]
        parts.append(Part(folder.name, ["benchmark", *common, *sizes, *batches], folder / "benchmark.json"))
    run, rehearsal = out / "run", out / "rehearsal"
    global_batch = settings.local_batches[0] * num_processes
    shard_size = -(-STEPS * global_batch // SHARDS)
    shards = write_noise_shards(out / "shards", SHARDS, shard_size, settings.picture_size)
    recipe = {
        "model": settings.model, "precision": settings.precision.replace("amp_bf16", "amp_bfloat16"), "slices": 1,
        "global_batch_size": global_batch, "samples": STEPS * global_batch, "data_samples": SHARDS * shard_size,
        "workers": min(4, SHARDS // num_processes) if device == "cuda" else 1, "warmup": 2,
        "flags.grad-checkpointing": "true",
    }  # fmt: skip
    train = [RECIPE, "--data", shards, "--device", device, "--nproc", num_processes]
    train += [part for name, value in recipe.items() for part in ("--set", f"{name}={value}")]
    parts.append(
        Part("rehearsal", ["rehearse", *train, "--steps", STEPS, "--out", rehearsal], rehearsal / "rehearsal.json")
    )
    parts.append(Part("run", ["run", *train, "--out", run], run / "state.json"))
    if importlib.util.find_spec("clip_benchmark"):
        name = write_noise_classes(out / "classes", 4 * settings.local_batches[0], settings.picture_size)
        evaluate = ["evaluate", run / "checkpoints" / "epoch_1.pt", "--data", out / "classes", "--datasets", name]
        evaluate += ["--suite", "zeroshot", "--device", settings.device, "--out", out / "evaluation"]
        parts.append(Part("evaluation", evaluate, out / "evaluation"))
    return [part._replace(arguments=list(map(str, part.arguments))) for part in parts]


def _told(part: Part, code: int | None, log: Path, seconds: float, is_over: bool) -> dict:
    """Returns what everything.json tells of a part, with the results that it left."""
    files = sorted(part.results.rglob("*.json")) if part.results.is_dir() else [part.results]
    results = [json.loads(file.read_text()) for file in files if file.exists()]
    state = "done" if code == 0 else "not begun: the time is up" if code is None else f"failed with exit code {code}"
    if code and is_over:
        state = "stopped: the time is up"
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return {
        "name": part.name,
        "command": shlex.join(["superclip", *part.arguments]),
        "state": state,
        "seconds": round(seconds, 1),
        "last_line": next((line for line in reversed(lines) if line.strip()), ""),
        "results": results,
    }


def everything_text(report: dict) -> str:
    """Returns a line a part."""
    rows = [[part["name"], part["state"], f"{part['seconds']:,.0f}", _said(part)] for part in report["parts"]]
    return f"{report['device']}:\n\n{markdown_table(['part', 'state', 'seconds', 'what it says'], rows)}"


def _said(part: dict) -> str:
    if part["state"] != "done":
        return part["last_line"]
    first = part["results"][0] if part["results"] else {}
    if "head_seconds" in first:
        return _of_head(first)
    if "samples_per_second" in first and "limit" in first:
        return f"{first['samples_per_second']['median']:,.4g} samples/s; limited by {first['limit']}"
    return part["last_line"]


def _of_head(measured: dict) -> str:
    def median(values):
        return sorted(values)[len(values) // 2]

    head = median(measured["head_seconds"]["class_loss"]) / median(measured["head_seconds"]["three products"])
    told = f"class loss {head:.2f} × the three products"
    if "step_seconds" in measured:
        step = measured["step_seconds"]
        told += f"; step {median(step['with --superclip']) / median(step['OpenCLIP']):.3f} × OpenCLIP's"
    memory = measured["step_memory"]
    return f"{told}; plan follows {memory['followed'] / memory['measured']:.2f} of its memory"
