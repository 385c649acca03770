"""The record of a graphics card: training steps with and without the class head, memory and
checks."""

import argparse
import datetime
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from ...checkpoints.model_configurations import register_model
from ...environment import check_device, processor, versions
from ...errors import InputError
from ...files import make_folder, read_json, write_json
from ...rendering import markdown_table
from .gpu_checks import run_checks
from .time_and_memory import make_step, timed_in_turns

SIZES = {  # of a GPU: the three local batch sizes of each model
    "ViT-B-32": (128, 256, 512),
    "ViT-B-16": (64, 128, 256),
    "ViT-L-14": (16, 32, 64),
}
CPU_SIZES = {"ViT-Ti-16-96": (1, 2, 3)}
VERSION = 1  # of the schema
SCHEMA = {
    "version": int,
    "date": str,
    "device": str,
    "memory_bytes": int,
    "precision": str,
    "versions": dict,
    "steps": list,
    "checks": dict,
    "seconds": float,
}
STEP = {
    "model": str,
    "batch": int,
    "openclip_seconds": float,
    "superclip_seconds": float,
    "openclip_peak_bytes": int,
    "superclip_peak_bytes": int,
}


def measure_card(options: argparse.Namespace) -> dict:
    """Measures, writes card.json and returns its content.

    InputError without a GPU, unless --device names another."""
    if options.device is None and not torch.cuda.is_available():
        raise InputError(
            "--card measures a GPU, and torch finds none here: --device cpu makes a small "
            "trial record"
        )
    device = check_device(options.device)
    make_folder(options.out, "--out")
    start = time.monotonic()
    on_gpu = torch.device(device).type == "cuda"
    precision = "fp32"
    if on_gpu:
        precision = "amp_bf16" if torch.cuda.is_bf16_supported() else "amp"
    sizes = SIZES if on_gpu else CPU_SIZES
    steps = [
        _measure_step(model, batch, device, precision)
        for model, batches in sizes.items()
        for batch in batches
    ]
    record = {
        "version": VERSION,
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if on_gpu else processor(),
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory if on_gpu else 0,
        "precision": precision,
        "versions": versions("python", "openclip-superclip", "open_clip_torch", "torch"),
        "steps": steps,
        "checks": run_checks(device),
        "seconds": round(time.monotonic() - start, 1),
    }
    write_json(options.out / "card.json", record)
    return record


def _measure_step(model: str, batch: int, device: str, precision: str) -> dict:
    """Returns the median seconds and the peak memory of a step of each; None where the memory
    does not suffice."""
    measured = {"model": model, "batch": batch}
    on_gpu = torch.device(device).type == "cuda"
    for name, with_head in (("openclip", False), ("superclip", True)):
        seconds, peak = None, None
        try:
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            step = make_step(
                register_model(model), with_head, batch, device, precision, grad_checkpointing=False
            )
            repeats = 5 if on_gpu else 1
            seconds = statistics.median(
                timed_in_turns({name: step}, repeats, device, f"{model}, {batch}")[name]
            )
            peak = torch.cuda.max_memory_allocated() if on_gpu else None
        except torch.OutOfMemoryError:
            pass
        measured |= {f"{name}_seconds": seconds, f"{name}_peak_bytes": peak}
        step = None
        if on_gpu:
            torch.cuda.empty_cache()
    return measured


def read_card(path: Path) -> dict:
    """Returns a record; InputError if it is not one of the schema, naming the field."""
    record = read_json(path, advice="expected the card.json of superclip benchmark --card")
    _check_fields(path, record, SCHEMA)
    if record["version"] != VERSION:
        raise InputError(f"{path}: version is {record['version']}; expected {VERSION}")
    for index, step in enumerate(record["steps"]):
        _check_fields(path, step, STEP, f"steps[{index}].", optional=True)
    return record


def _check_fields(
    path: Path, values: dict, schema: dict[str, type], prefix: str = "", optional: bool = False
) -> None:
    if not isinstance(values, dict) or values.keys() != schema.keys():
        fields = sorted(values) if isinstance(values, dict) else values
        raise InputError(
            f"{path}: {prefix or 'the record '}has the fields {fields}; expected {sorted(schema)}"
        )
    for name, kind in schema.items():
        value = values[name]
        is_missing = optional and value is None and name.endswith(("_seconds", "_peak_bytes"))
        if not is_missing and type(value) is not kind:
            raise InputError(f"{path}: {prefix}{name} is {value!r}; expected {kind.__name__}")


def card_table(records: Iterable[dict]) -> str:
    """Returns the table of the records in Markdown; a sentence if there are none."""
    rows = []
    for record in sorted(records, key=lambda record: (record["device"], record["date"])):
        passed = sum(result == "passed" for result in record["checks"].values())
        about = (
            f"{record['device']}, {record['precision']}, torch "
            f"{record['versions']['torch']}, {record['date']}"
        )
        for step in record["steps"]:
            seconds = step["openclip_seconds"], step["superclip_seconds"]
            ratio = "–" if None in seconds else f"{seconds[1] / seconds[0]:.3f}"
            peaks = step["openclip_peak_bytes"], step["superclip_peak_bytes"]
            rows.append(
                [
                    about,
                    step["model"],
                    str(step["batch"]),
                    *(_number(value, 1e3, 1) for value in seconds),
                    ratio,
                    *(_number(value, 2**-30, 2) for value in peaks),
                    f"{passed} of {len(record['checks'])}",
                ]
            )
    if not rows:
        return "No card has been measured yet."
    heads = ["card", "model", "batch", "OpenCLIP, ms", "with head, ms", "×"]
    heads += ["OpenCLIP, GiB", "with head, GiB", "checks passed"]
    return markdown_table(heads, rows)


def _number(value: float | None, factor: float, digits: int) -> str:
    return "–" if value is None else f"{value * factor:,.{digits}f}"
