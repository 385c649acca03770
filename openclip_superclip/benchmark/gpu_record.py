"""The record of a graphics card: training steps with and without the class head, memory and
checks."""

import argparse
import datetime
import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from operator import attrgetter

import torch

from ..environment import check_device, versions
from ..errors import InputError
from ..files import check_results, make_folder, write_json
from ..rendering import markdown_table
from .gpu_checks import run_checks
from .time_and_memory import TIMED_WITH, device_name, make_step, timed_in_turns

SIZES = {  # of a GPU: the three local batch sizes of each model
    "ViT-B-32": (128, 256, 512),
    "ViT-B-16": (64, 128, 256),
    "ViT-L-14": (16, 32, 64),
}
CPU_SIZES = {"ViT-Ti-16-96": (1, 2, 3)}
VERSION = 1  # of the fields of card.json


@dataclass(frozen=True)
class Step:
    """Training steps with and without the class head; None where the memory does not suffice."""

    model: str
    batch: int
    openclip_seconds: float | None
    superclip_seconds: float | None
    openclip_peak_bytes: int | None
    superclip_peak_bytes: int | None


@dataclass(frozen=True)
class Card:
    """The content of card.json."""

    version: int
    date: str
    device: str
    memory_bytes: int
    precision: str
    versions: dict
    steps: list[Step]
    checks: dict
    seconds: float


def measure_card(options: argparse.Namespace) -> Card:
    """Measures, writes card.json and returns its content.

    InputError without a GPU, unless --device names another."""
    if options.device is None and not torch.cuda.is_available():
        raise InputError(
            "--card measures a GPU, and torch finds none here: --device cpu makes a small "
            "trial record"
        )
    device = check_device(options.device)
    check_results(options.out, ["card.json"], '"openclip_seconds"')
    make_folder(options.out)
    start = time.monotonic()
    is_gpu = device.startswith("cuda")
    precision = "fp32"
    if is_gpu:
        precision = "amp_bf16" if torch.cuda.is_bf16_supported() else "amp"
    steps = [
        measure_step(model, batch, device, precision)
        for model, batches in (SIZES if is_gpu else CPU_SIZES).items()
        for batch in batches
    ]
    card = Card(
        version=VERSION,
        date=datetime.date.today().isoformat(),
        device=device_name(device),
        memory_bytes=torch.cuda.get_device_properties(device).total_memory if is_gpu else 0,
        precision=precision,
        versions=versions(*TIMED_WITH),
        steps=steps,
        checks=run_checks(device),
        seconds=round(time.monotonic() - start, 1),
    )
    write_json(options.out / "card.json", asdict(card))
    return card


def measure_step(model: str, batch: int, device: str, precision: str) -> Step:
    """Returns the median seconds and the peak memory of a step with and without the head."""
    seconds, num_bytes = _time_step(model, batch, device, precision, with_head=False)
    head_seconds, head_bytes = _time_step(model, batch, device, precision, with_head=True)
    return Step(model, batch, seconds, head_seconds, num_bytes, head_bytes)


def _time_step(
    model: str, batch: int, device: str, precision: str, *, with_head: bool
) -> tuple[float | None, int | None]:
    """Returns the median seconds of a step, and its peak memory on a GPU."""
    is_gpu = device.startswith("cuda")
    if is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        step = make_step(model, batch, device, precision, with_head=with_head)
        times = timed_in_turns({"": step}, 5 if is_gpu else 1, f"{model}, {batch}")
    except torch.OutOfMemoryError:
        return None, None
    return statistics.median(times[""]), torch.cuda.max_memory_allocated() if is_gpu else None


def card_table(cards: Iterable[Card]) -> str:
    """Returns the table of the records in Markdown; a sentence if there are none."""
    rows = []
    for card in sorted(cards, key=attrgetter("device", "date")):
        passed = sum(result == "passed" for result in card.checks.values())
        name = f"{card.device}, {card.precision}, torch {card.versions['torch']}, {card.date}"
        for step in card.steps:
            is_measured = None not in (step.openclip_seconds, step.superclip_seconds)
            ratio = step.superclip_seconds / step.openclip_seconds if is_measured else None
            rows.append(
                [
                    name,
                    step.model,
                    str(step.batch),
                    _number(step.openclip_seconds, 1e3, 1),
                    _number(step.superclip_seconds, 1e3, 1),
                    _number(ratio, 1, 3),
                    _number(step.openclip_peak_bytes, 2**-30, 2),
                    _number(step.superclip_peak_bytes, 2**-30, 2),
                    f"{passed} of {len(card.checks)}",
                ]
            )
    if not rows:
        return "No card has been measured yet."
    heads = [
        "card",
        "model",
        "batch",
        "OpenCLIP, ms",
        "with head, ms",
        "×",
        "OpenCLIP, GiB",
        "with head, GiB",
        "checks passed",
    ]
    return markdown_table(heads, rows)


def _number(value: float | None, factor: float, digits: int) -> str:
    return "–" if value is None else f"{value * factor:,.{digits}f}"
