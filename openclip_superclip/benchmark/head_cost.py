"""What the class head costs on this machine: the loss beside other ways to compute it, and the whole training step."""

import functools
import platform
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch

from ..atomic_files import make_folder, write_json
from ..errors import InputError
from ..method.flops import count_gmacs
from ..model_files import know_model
from ..torch_device import check_device
from ..versions import versions
from .head_cost_figure import draw
from .loss_variants import CONTENDERS, compute, make_inputs
from .step_memory import step_memory
from .time_and_memory import interleaved, peak_memory
from .training_step import make_step

PAPER_HEAD_SHARE = {"ViT-L-16": 0.00077, "ViT-B-16": 0.0019}  # of the towers' FLOPs, attention's products left out
AUTOCAST = {"fp32": None, "amp": torch.float16, "amp_bf16": torch.bfloat16}


class BenchmarkSettings(NamedTuple):
    """What is measured: the options of the same names."""

    device: str
    precision: str
    head_batch: int
    width: int
    vocab: int
    model: str
    local_batch: int
    repeats: int
    step_repeats: int  # 0: no training step
    out: Path
    grad_checkpointing: bool = False  # of the step
    step_memory: bool = False  # measure it, too


def measure_head_cost(settings: BenchmarkSettings) -> dict:
    """Measures, writes benchmark.json and benchmark.png, and returns what the first holds: seconds, bytes and GMACs.

    Raises InputError for a model that OpenCLIP lacks, a device that is not here, and sizes that do not fit.
    """
    know_model(settings.model)
    if settings.model not in open_clip.list_models():
        raise InputError(f"--model is '{settings.model}'; expected one of OpenCLIP's models or a JSON file")
    check_device(settings.device)
    make_folder(settings.out, "--out")
    try:
        report = _measure(settings)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"--device {settings.device} has too little memory: give a smaller --head-batch, --vocab or --local-batch"
        ) from error
    write_json(settings.out / "benchmark.json", report)
    draw(settings.out / "benchmark.png", report)
    return report


def _measure(settings: BenchmarkSettings) -> dict:
    device = settings.device
    head = settings.head_batch, settings.width, settings.vocab, device, AUTOCAST[settings.precision]
    report = {
        "options": {**settings._asdict(), "out": str(settings.out)},
        "machine": {
            "device": _device_name(device),
            "threads": torch.get_num_threads(),
            **versions("python", "openclip-superclip", "open_clip_torch", "torch"),
        },
        "head_seconds": interleaved(_prepare(CONTENDERS, *head), settings.repeats, device, "class loss and gradients"),
        "head_peak_bytes": {name: peak_memory(_prepare_one, name, *head, device=device) for name in CONTENDERS},
        "gmacs": {
            name: {"without_attention": count_gmacs(name, False), "all": count_gmacs(name)} for name in PAPER_HEAD_SHARE
        },
    }
    step = settings.local_batch, device, settings.precision, settings.grad_checkpointing
    if settings.step_repeats:
        steps = {
            "OpenCLIP": make_step(settings.model, False, *step),
            "with --superclip": make_step(settings.model, True, *step),
        }
        report["step_seconds"] = interleaved(steps, settings.step_repeats, device, "training step")
        del steps  # and their memory
    if settings.step_memory:
        report["step_memory"] = step_memory(settings.model, *step)
    return report


def _device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _prepare(names, batch: int, width: int, vocab: int, device: str, autocast: torch.dtype | None) -> dict:
    """Returns the calls of contenders on the same inputs."""
    inputs = make_inputs(batch, width, vocab, device)
    return {name: functools.partial(compute, name, inputs, autocast) for name in names}


def _prepare_one(name: str, *sizes):
    """Returns the call of one contender; what a process of its own runs to measure memory."""
    return _prepare([name], *sizes)[name]
