"""The cost of a run: FLOPs, hours, memory, parameters and checkpoint sizes."""

import math
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import InputError
from ..openclip.train import check_command
from .model_size import FLOAT, ModelSize, model_size
from .run import Run

if TYPE_CHECKING:
    from torch import nn

# OpenCLIP's published runs on LAION: the model's forward multiply-adds in 10^9, its passes (the
# backward pass is two, gradient checkpointing one), and the samples per second of each A100 of 40
# GB, of the slowest and the fastest run.
# From OpenCLIP's README (LAION-400M) and the table of trained models of
# huggingface.co/laion/scaling-laws-openclip.
PUBLISHED = {
    "ViT-B-32": (7.4, 3, 412, 850),
    "ViT-B-16": (20.5, 3, 310, 396),
    "ViT-L-14": (87.7, 4, 66, 79),
}
A100_TFLOPS = 312.0  # in bfloat16
OTHER_GPU = 0.5  # the slowest utilization of a GPU of which no run is published, times the A100's
SLICE_HOURS = 0.5  # of the slices that a plan advises
CORE_GFLOPS = (20, 60)  # of a CPU core: the demo's model and ViT-Ti-16-96, measured on an AMD EPYC


def utilization(forward_gmacs: float, gpu_tflops: float) -> tuple[float, float]:
    """Returns the range of a GPU's utilization in published runs of the model that is nearest in
    size."""
    gmacs, passes, slow, fast = min(
        PUBLISHED.values(), key=lambda run: abs(math.log(run[0] / forward_gmacs))
    )
    low, high = (2e9 * gmacs * passes * speed / (A100_TFLOPS * 1e12) for speed in (slow, fast))
    return (low if gpu_tflops == A100_TFLOPS else OTHER_GPU * low), high


def estimate_cost(
    run: Run, gpu_tflops: float = A100_TFLOPS, samples_per_second: float | None = None
) -> dict:
    """Returns the plan's costs, for JSON; `hours` and `gpu_hours` are upper ends of their ranges.

    FLOPs are those of the towers and the head, two per multiplication with addition: the backward
    pass is two forward ones, gradient checkpointing and accumulation are one more each, of the
    towers. The contrastive loss's own products, 0.12 % of these at ViT-B/16 and batch 32,768, and
    the optimizer's are not counted. `gpu_tflops` is a GPU's peak, and `samples_per_second` the
    measured throughput of all GPUs together.
    """
    counts = counts_of(run)
    gmacs = counts.pop("forward_gmacs")
    towers = gmacs["vision"] + gmacs["text"]
    passes = 3 + bool(run.recipe.flags.get("grad-checkpointing")) + (run.accum_freq > 1)
    flops_per_sample = 2e9 * (towers * passes + 3 * gmacs["head"])
    flops = flops_per_sample * run.samples
    kept_patches = 1 - (run.recipe.flags.get("force-patch-dropout") or 0)
    # a model with patch dropout is compared with published runs by its size with all patches
    fractions = utilization(gmacs["vision"] / kept_patches + gmacs["text"], gpu_tflops)
    if samples_per_second:
        speeds = [flops_per_sample * samples_per_second]
    elif run.device == "cpu":
        speeds = [speed * 1e9 * (os.cpu_count() or 1) for speed in CORE_GFLOPS]
    else:
        speeds = [gpu_tflops * 1e12 * fraction * run.world_size for fraction in fractions]
    fast = flops / speeds[-1] / 3600
    slow = flops / speeds[0] / 3600
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
        "slice_hours": [fast / run.num_slices, slow / run.num_slices],
        **counts,
        "disk_bytes": run.max_checkpoints * counts["checkpoint_bytes"],
    }


def shorter_slices(run: Run, hours: float) -> str:
    """Returns the option, in parentheses, with which a slice of so many hours takes at most half an
    hour; "" for a table, whose slices are passes."""
    if run.is_table:
        return ""
    number = math.ceil(run.num_slices * hours / SLICE_HOURS)  # of the whole run
    slices = math.ceil(number * run.recipe.data_samples / run.recipe.samples)
    return f" (--set slices={slices})"


def counts_of(run: Run) -> dict:
    """Returns the plan's numbers of parameters, bytes and multiplications; InputError for a folder
    of the demo that is missing."""
    if run.recipe.model == "local-dir:demo/model" and not os.path.isdir("demo/model"):
        raise InputError("model: there is no demo/model; superclip demo --data-only writes it")
    size = model_size(run.recipe)
    return _count(run) if size is None else _counts_of_size(size)


def _counts_of_size(size: ModelSize) -> dict:
    whole = size.vision + size.text + size.head + size.scale
    weights = FLOAT * whole.parameters
    towers = {"vision": size.vision, "text": size.text, "head": size.head}
    return {
        "forward_gmacs": {name: tower.products / 1e9 for name, tower in towers.items()},
        "parameters": whole.parameters,
        "head_parameters": size.head.parameters,
        "checkpoint_bytes": 3 * weights + whole.saved_bytes,
        "memory_bytes": {
            "weights": weights + whole.saved_bytes + whole.unsaved_bytes,
            "gradients": weights,
            "optimizer": 2 * weights,
            "head": 4 * FLOAT * size.head.parameters,
        },
    }


def _count(run: Run) -> dict:
    """Returns the same as `_counts_of_size`, from the model itself."""
    from ..openclip.factory import model_without_values
    from .flops import count_gmacs

    model = model_without_values(check_command(run.openclip_arguments()))
    parameters = dict(model.named_parameters())
    head = {name: tensor for name, tensor in parameters.items() if name.startswith("class_head.")}
    return {
        "forward_gmacs": count_gmacs(model, head),
        "parameters": sum(tensor.numel() for tensor in parameters.values()),
        "head_parameters": sum(tensor.numel() for tensor in head.values()),
        "checkpoint_bytes": checkpoint_bytes(model),
        "memory_bytes": memory_bytes(model, head),
    }


def checkpoint_bytes(model: "nn.Module") -> int:
    """Returns the bytes of a checkpoint: the weights, AdamW's two moments of each, and counts."""
    parameters = sum(tensor.nbytes for tensor in model.parameters())
    return 2 * parameters + sum(tensor.nbytes for tensor in model.state_dict().values())


def memory_bytes(model: "nn.Module", head: dict) -> dict[str, int]:
    """Returns the bytes that a training needs beside activations: of the weights and buffers, of
    the gradients and AdamW's two moments of what is trained, and of all that belongs to the head's
    parameters."""

    def gradients(parameters: Iterable) -> int:
        return sum(tensor.nbytes for tensor in parameters if tensor.requires_grad)

    trained = gradients(model.parameters())
    return {
        "weights": sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]),
        "gradients": trained,
        "optimizer": 2 * trained,
        "head": sum(tensor.nbytes for tensor in head.values()) + 3 * gradients(head.values()),
    }
