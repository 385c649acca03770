"""The cost of a run: FLOPs, hours, memory, parameters and checkpoint sizes."""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.model_configurations import openclip_name
from ..checkpoints.resume_record import configuration_digest
from ..errors import InputError
from ..files import read_json
from ..option_table import effect_of
from ..rendering import significant
from ..trainer.train import check_command
from .recipe import Recipe
from .run import Run

if TYPE_CHECKING:
    from torch import nn

    from ..checkpoints.weights import Weights

# OpenCLIP's published runs on LAION, by the model's forward multiply-adds in 10^9: its passes (the
# backward pass is two, gradient checkpointing one), and the samples per second of each A100 of 40
# GB in the slowest run.
# From OpenCLIP's README (LAION-400M) and the table of trained models of
# huggingface.co/laion/scaling-laws-openclip.
PUBLISHED = {
    7.4: (3, 412),  # ViT-B-32
    20.5: (3, 310),  # ViT-B-16
    87.7: (4, 66),  # ViT-L-14
}
A100_TFLOPS = 312.0  # in bfloat16
# of a core of an AMD EPYC, by the model's forward multiply-adds in 10^9: the demo's model and
# ViT-Ti-16-96, trained on images that are quickly decoded
CORE_GFLOPS = {0.012: 20, 0.165: 50}
SLICE_HOURS = 0.5  # of the slices that a plan advises
SLICE_HOURS_MAX = 1.1  # of slices without a warning
WEIGHTS = (".safetensors", ".bin", ".pth")  # that OpenCLIP finds in a folder
# The counts of the shipped recipes' models, which are counted without torch;
# tests/support/model_counts.py writes them.
COUNTS = Path(__file__).with_name("model_counts.json")
FLOAT_WEIGHTS = ("fp32", "amp", "amp_bf16", "amp_bfloat16")  # precisions with float32 weights


def utilization(forward_gmacs: float) -> float:
    """Returns an A100's utilization in the slowest published run of the model that is nearest in
    size."""
    gmacs = nearest(forward_gmacs, PUBLISHED)
    passes, speed = PUBLISHED[gmacs]
    return 2e9 * gmacs * passes * speed / (A100_TFLOPS * 1e12)


def nearest(size: float, sizes: Iterable[float]) -> float:
    """Returns the size with the smallest ratio to the given one."""
    return min(sizes, key=lambda other: abs(math.log(other / size)))


def estimate_cost(run: Run, samples_per_second: float | None = None) -> dict:
    """Returns the costs of a run, by name.

    FLOPs are those of the towers and the head, two per multiplication with addition: the backward
    pass is two forward ones, gradient checkpointing and accumulation are one more each, of the
    towers. The contrastive loss's own products, 0.12 % of these at ViT-B/16 and batch 32,768, and
    the optimizer's are not counted. The hours are those of A100s, unless `samples_per_second`, the
    measured throughput of all GPUs together, is given.
    """
    counts = counts_of(run)
    gmacs = counts["forward_gmacs"]
    towers = gmacs["vision"] + gmacs["text"]
    passes = 3 + bool(run.recipe.flags.get("grad-checkpointing")) + (run.accum_freq > 1)
    flops_per_sample = 2e9 * (towers * passes + 3 * gmacs["head"])
    flops = flops_per_sample * run.samples
    kept_patches = 1 - (run.recipe.flags.get("force-patch-dropout") or 0)
    # a model with patch dropout is compared with published runs by its size with all patches
    fraction = utilization(gmacs["vision"] / kept_patches + gmacs["text"])
    core_gflops = CORE_GFLOPS[nearest(towers, CORE_GFLOPS)]
    if samples_per_second:
        speed = flops_per_sample * samples_per_second
    elif run.device == "cpu":
        speed = core_gflops * 1e9 * (os.cpu_count() or 1)
    else:
        speed = A100_TFLOPS * 1e12 * fraction * run.world_size
    hours = flops / speed / 3600
    return {
        **counts,
        "flops_per_sample": flops_per_sample,
        "flops": flops,
        "utilization": fraction,
        "core_gflops": core_gflops,
        "gpu_hours": hours * run.world_size,
        "hours": hours,
        "samples_per_second": samples_per_second,
        "slice_hours": hours / run.num_slices,
        "disk_bytes": run.max_checkpoints * counts["checkpoint_bytes"],
    }


def long_slice(run: Run, hours: float, hours_of_job: float = math.inf) -> list[str]:
    """Returns a warning if a slice of so many hours loses much to an interruption or does not fit
    in a job, with the option that brings it to half an hour or half of the job; the slices of a
    table are passes."""
    if run.is_table or run.device == "cpu" or hours <= min(SLICE_HOURS_MAX, hours_of_job):
        return []
    shorter = min(SLICE_HOURS, hours_of_job / 2)
    number = math.ceil(run.num_slices * hours / shorter)  # of the whole run
    slices = math.ceil(number * run.recipe.data_samples / run.recipe.samples)
    return [
        f"a slice takes {significant(hours, 2)} hours, which an interruption or the end of a job "
        f"loses: --set slices={slices} brings it to {significant(60 * shorter, 2)} minutes"
    ]


def counts_of(run: Run) -> dict:
    """Returns the plan's numbers of parameters, bytes and multiplications; InputError for a folder
    of the demo that is missing."""
    if run.recipe.model == "local-dir:demo/model" and not os.path.isdir("demo/model"):
        raise InputError("model: there is no demo/model; superclip demo --data-only writes it")
    return known_counts(run.recipe) or count(run)


def known_counts(recipe: Recipe) -> dict | None:
    """Returns the counts of a shipped recipe's model, head and starting weights, without importing
    OpenCLIP, which takes seconds; None for others."""
    model = counted_model(recipe)
    for row in read_json(COUNTS)["models"]:
        if row["model"] == model:
            return row["counts"]
    return None


def counted_model(recipe: Recipe) -> dict:
    """Returns what the counts of a recipe depend on, and the weights from which it starts."""
    name = openclip_name(recipe.model)
    folder = Path(name.removeprefix("local-dir:"))
    flags = {
        flag: value
        for flag, value in sorted(recipe.flags.items())
        if effect_of(flag.replace("-", "_")).changes_weights
    }
    return {
        "name": configuration_digest(name) or name,
        "weights": sorted(file.name for file in folder.glob("*") if file.suffix in WEIGHTS),
        "precision": "float32" if recipe.precision in FLOAT_WEIGHTS else recipe.precision,
        "head": recipe.config.head_input if recipe.superclip is not None else None,
        "flags": flags,
    }


def count(run: Run) -> dict:
    """Returns the counts of the model that OpenCLIP builds, without values."""
    from ..trainer.factory import model_without_values

    model = model_without_values(check_command(run.openclip_arguments()))
    parameters = dict(model.named_parameters())
    head = {name: tensor for name, tensor in parameters.items() if name.startswith("class_head.")}
    saved = sum(tensor.nbytes for tensor in model.state_dict().values())
    moments = 2 * sum(tensor.nbytes for tensor in parameters.values())  # AdamW's, of each weight
    return {
        "forward_gmacs": count_gmacs(model, head),
        "parameters": sum(tensor.numel() for tensor in parameters.values()),
        "head_parameters": sum(tensor.numel() for tensor in head.values()),
        "checkpoint_bytes": saved + moments,
        "memory_bytes": memory_bytes(model, head),
    }


def memory_bytes(model: "nn.Module", head: "Weights") -> dict[str, int]:
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


def count_gmacs(model: "nn.Module", head: "Weights") -> dict[str, float]:
    """Returns GMACs of one pair through `vision`, `text` and `head`, forward, of an OpenCLIP model
    on "meta".

    `head` are the class head's tensors by name, empty without one. Of a Hugging Face text tower,
    only the linear layers are counted: transformers cannot run it on "meta".
    """
    import torch
    from open_clip.hf_model import HFTextEncoder
    from open_clip.utils import to_2tuple
    from torch.utils.flop_counter import FlopCounterMode

    num_pairs = 2  # BatchNorm refuses one image whose last feature map is a single patch
    image = torch.empty(num_pairs, 3, *to_2tuple(model.visual.image_size), device="meta")
    text = torch.zeros(num_pairs, model.context_length, dtype=torch.long, device="meta")
    counters = {tower: FlopCounterMode(display=False) for tower in ("vision", "text")}
    with counters["vision"]:
        model.encode_image(image)
    text_tower = getattr(model, "text", None)
    with counters["text"]:
        if isinstance(text_tower, HFTextEncoder):
            for layer in text_tower.transformer.modules():
                if isinstance(layer, torch.nn.Linear):
                    layer(torch.empty(text.numel(), layer.in_features, device="meta"))
        else:
            model.encode_text(text)
    gmacs = {}
    for tower, counter in counters.items():
        gmacs[tower] = counter.get_total_flops() / 2e9 / num_pairs
    return gmacs | {"head": head["class_head.weight"].numel() / 1e9 if head else 0.0}
