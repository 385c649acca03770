"""The cost of a run: FLOPs, hours, checkpoint sizes, and the memory of a step."""

import argparse
import bisect
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..environment import versions
from ..errors import InputError, reason
from ..files import PACKAGE, write_json
from ..openclip.train import check_command
from .plan import divisors
from .run import Run

# OpenCLIP's published runs on LAION: the model's forward multiply-adds in 10^9, its passes (the backward pass is two,
# gradient checkpointing one), and the samples per second of each A100 of 40 GB, of the slowest and the fastest run.
# From OpenCLIP's README (LAION-400M) and the table of trained models of huggingface.co/laion/scaling-laws-openclip.
PUBLISHED = {
    "ViT-B-32": (7.4, 3, 412, 850),
    "ViT-B-16": (20.5, 3, 310, 396),
    "ViT-L-14": (87.7, 4, 66, 79),
}
A100_TFLOPS = 312.0  # in bfloat16
OTHER_GPU = 0.5  # the slowest utilization of a GPU of which no run is published, times the A100's
CORE_GFLOPS = (20, 60)  # of a CPU core: the demo's model and ViT-Ti-16-96, measured on an AMD EPYC
RESERVE = 0.1  # of a GPU, assumed: CUDA and its libraries, NCCL, gaps between tensors


class GPU(NamedTuple):
    """A GPU, from its data sheet."""

    name: str
    bytes: int
    tflops: float | None = None  # in bfloat16, dense; None if only the memory is known


GPUS = [
    GPU("RTX4090-24", 24 * 10**9, 165), GPU("A100-40", 40 * 10**9, 312), GPU("L40S-48", 48 * 10**9, 362),
    GPU("A100-80", 80 * 10**9, 312), GPU("H100-80", 80 * 10**9, 989), GPU("H200", 141 * 10**9, 989),
]  # fmt: skip


def find_gpu(text: str) -> GPU:
    """Returns the GPU by type or memory, such as 24e9, 24GB, 24GiB; InputError for anything else."""
    for gpu in GPUS:
        if gpu.name.lower() == text.lower():
            return gpu
    size = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?) *(|gb|gib)", text.lower())
    number = round(float(size[1]) * {"": 1, "gb": 10**9, "gib": 2**30}[size[2]]) if size else 0
    if number < 10**8:
        types = ", ".join(gpu.name for gpu in GPUS)
        raise InputError(f"--gpu is {text}; expected one of {types}, or the bytes of its memory, such as 24GB")
    return GPU(f"a GPU of {number / 1e9:,.3g} GB", number)


def utilization(forward_gmacs: float, gpu_tflops: float) -> tuple[float, float]:
    """Returns the range of a GPU's utilization in published runs of the model that is nearest in size."""
    gmacs, passes, slow, fast = min(PUBLISHED.values(), key=lambda run: abs(math.log(run[0] / forward_gmacs)))
    low, high = (2e9 * gmacs * passes * speed / (A100_TFLOPS * 1e12) for speed in (slow, fast))
    return (low if gpu_tflops == A100_TFLOPS else OTHER_GPU * low), high


def estimate_cost(run: Run, gpu_tflops: float = A100_TFLOPS, samples_per_second: float | None = None) -> dict:
    """Returns the plan's costs, for JSON; `hours` and `gpu_hours` are upper ends of their ranges.

    FLOPs are those of the towers and the head, two per multiplication with addition: the backward pass is two forward
    ones, gradient checkpointing and accumulation are one more each, of the towers. The contrastive loss's own products,
    0.12 % of these at ViT-B/16 and batch 32,768, and the optimizer's are not counted.

    Args:
        gpu_tflops: a GPU's peak, in 10^12 FLOPs per second.
        samples_per_second: measured throughput of all GPUs together.
    """
    counts = count_model(run)
    gmacs = counts.pop("gmacs")
    towers = gmacs["vision"] + gmacs["text"]
    passes = 3 + bool(run.recipe.flags.get("grad-checkpointing")) + (run.accum_freq > 1)
    flops_per_sample = 2e9 * (towers * passes + 3 * gmacs["head"] * (run.recipe.superclip is not None))
    flops = flops_per_sample * run.samples
    fractions = utilization(towers, gpu_tflops)
    if samples_per_second:
        speeds = [flops_per_sample * samples_per_second]
    elif run.device == "cpu":
        speeds = [speed * 1e9 * (os.cpu_count() or 1) for speed in CORE_GFLOPS]
    else:
        speeds = [gpu_tflops * 1e12 * fraction * run.world_size for fraction in fractions]
    fast, slow = flops / speeds[-1] / 3600, flops / speeds[0] / 3600
    slice_samples = run.slice_steps * run.global_batch_size
    return {
        "forward_gmacs": gmacs,
        "flops_per_sample": flops_per_sample,
        "flops": flops,
        "utilization": fractions,
        "gpu_tflops": gpu_tflops,
        "gpu_hours": slow * run.world_size,
        "hours": slow,
        "hours_range": [fast, slow],
        "samples_per_second": samples_per_second,
        "slice_minutes": slice_samples / samples_per_second / 60 if samples_per_second else None,
        **counts,
        "disk_bytes": run.max_checkpoints * counts["checkpoint_bytes"],
    }


def count_model(run: Run) -> dict:
    """Returns the multiply-adds, parameters and bytes of a checkpoint of the plan's model."""
    recipe = run.recipe
    inputs = {
        "model": recipe.model,
        "precision": recipe.precision,
        "patch_dropout": float(recipe.flags.get("force-patch-dropout", 0)),
        "with_head": recipe.superclip is not None,
    }

    def count() -> dict:
        from .model_size import count_model  # OpenCLIP takes seconds to import

        return count_model(**inputs)

    return _cached("model", inputs, count)


def _cached(what: str, inputs: dict, count: Callable[[], dict]) -> dict:
    """Returns `count()`, or the cached result for the same inputs, versions and model file."""
    model = Path(inputs["model"].removeprefix("local-dir:"))
    file = model / "open_clip_config.json" if model.is_dir() else model
    config = file.read_text(errors="replace") if file.is_file() else ""
    code = max(path.stat().st_mtime_ns for path in PACKAGE.rglob("*.py"))
    depends_on = what, inputs, versions("python", "open_clip_torch", "torch", "timm"), code, config
    key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:32]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openclip-superclip"
    kept = cache / "counts" / f"{what}-{key}.json"
    with contextlib.suppress(OSError, ValueError):
        return json.loads(kept.read_text())
    result = count()
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, result)
    return result


def estimate_memory(run: Run, gpu: GPU | None = None) -> dict:
    """Returns the peak memory of a rank's tensors in bytes, and the GPUs that it fits, for JSON.

    A tenth of a GPU's memory is assumed to be used for other purposes than tensors. Raises InputError, with the largest
    --gpu-batch-max that fits, if the batch does not fit `gpu`.
    """
    memory = _traced_memory(run)
    if "unknown" in memory:
        if gpu is not None:
            raise InputError(f"--gpu {gpu.name}: memory cannot be traced here ({memory['unknown']}); leave --gpu out")
        return memory
    if gpu is not None and not _holds(gpu, memory):
        raise InputError(_refusal(run, gpu, memory["peak"]))
    holders = [one.name for one in GPUS if _holds(one, memory)] if run.device == "cuda" else []
    return memory | {"reserve": RESERVE, "gpu": gpu._asdict() if gpu else None, "held_by": holders}


def _holds(gpu: GPU, memory: dict) -> bool:
    return memory["peak"] <= (1 - RESERVE) * gpu.bytes


def _refusal(run: Run, gpu: GPU, peak: int) -> str:
    def is_too_large(size: int) -> bool:
        smaller = dataclasses.replace(run, batch_size=size, accum_freq=per_gpu // size)
        return not _holds(gpu, _traced_memory(smaller))

    per_gpu = run.batch_size * run.accum_freq
    sizes = [size for size in divisors(per_gpu) if size < run.batch_size]
    num_fitting = bisect.bisect_left(sizes, True, key=is_too_large)
    advice = f"--gpu-batch-max {sizes[num_fitting - 1]} fits" if num_fitting else "no batch fits: give more GPUs"
    return (
        f"--gpu: {run.batch_size:,} samples take {peak / 1e9:,.3g} GB, and {gpu.name} has {gpu.bytes / 1e9:,.3g} GB, "
        f"of which a tenth is left for what is not a tensor; {advice}"
    )


TRACED = (  # OpenCLIP's options that determine the memory of a step
    "model", "batch_size", "accum_freq", "precision", "device", "grad_checkpointing", "siglip", "local_loss",
    "gather_with_grad", "force_patch_dropout", "force_image_size", "force_context_length", "lock_image",
    "lock_image_unlocked_groups", "lock_image_freeze_bn_stats", "lock_text", "lock_text_unlocked_layers",
    "lock_text_freeze_layer_norm", "coca_caption_loss_weight", "coca_contrastive_loss_weight", "loss_dist_impl",
)  # fmt: skip


def _traced_memory(run: Run) -> dict:
    """Returns the memory of a rank in bytes, or under "unknown" why it cannot be traced."""
    args = vars(check_command(run.openclip_arguments()))
    if args["distill_model"] is not None:
        return {"unknown": "a teacher beside the model"}
    with_head = run.recipe.superclip is not None
    inputs = {name: args[name] for name in TRACED if name in args}

    def trace() -> dict:
        from .model_size import trace_step

        return trace_step(argparse.Namespace(**inputs), run.world_size, with_head)

    try:
        return _cached("memory", {**inputs, "world_size": run.world_size, "with_head": with_head}, trace)
    except Exception as error:  # a tower that tensors without values cannot pass, or one of a hub that is not reached
        return {"unknown": f"{type(error).__name__}: {reason(error)[:120]}"}
