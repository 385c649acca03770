"""Whether a GPU holds the batch that a plan gives it, by type of GPU or bytes."""

import argparse
import dataclasses
import re
from typing import NamedTuple

from ..errors import InputError
from ..integration.command_check import check_command
from .batch_split import divisors
from .kept_results import kept
from .plan import Plan

RESERVE = 0.1  # of a GPU, assumed: CUDA and its libraries, NCCL, gaps between tensors
UNITS = {"": 1, "b": 1, "gb": 10**9, "gib": 2**30, "mb": 10**6, "mib": 2**20}


ASKED = (  # of OpenCLIP's command line: all that the memory of a step follows from
    "model", "batch_size", "accum_freq", "precision", "device", "grad_checkpointing", "siglip", "local_loss",
    "gather_with_grad", "force_patch_dropout", "force_image_size", "force_context_length", "lock_image",
    "lock_image_unlocked_groups", "lock_image_freeze_bn_stats", "lock_text", "lock_text_unlocked_layers",
    "lock_text_freeze_layer_norm", "coca_caption_loss_weight", "coca_contrastive_loss_weight", "loss_dist_impl",
)  # fmt: skip


class GPU(NamedTuple):
    """A GPU as its maker's data sheet has it."""

    name: str
    bytes: int
    tflops: float | None  # in bfloat16, dense


GPUS = [
    GPU("A100-40", 40 * 10**9, 312), GPU("L40S-48", 48 * 10**9, 362), GPU("A100-80", 80 * 10**9, 312),
    GPU("H100-80", 80 * 10**9, 989), GPU("H200", 141 * 10**9, 989),
]  # fmt: skip


def find_gpu(text: str) -> GPU:
    """Returns the GPU of a type's name, or of bytes such as 24e9, 24GB, 24GiB; InputError for anything else."""
    for gpu in GPUS:
        if gpu.name.lower() == text.lower():
            return gpu
    size = re.fullmatch(r"([\d.]+(?:e\d+)?)\s*(\w*)", text.lower())
    try:
        number = round(float(size[1]) * UNITS[size[2]])
    except (TypeError, KeyError, ValueError, OverflowError):
        number = 0
    if number < 10**8:
        types = ", ".join(gpu.name for gpu in GPUS)
        raise InputError(f"--gpu is {text}; expected one of {types}, or the bytes of its memory, such as 24GB")
    return GPU(f"a GPU of {number / 1e9:,.3g} GB", number, None)


def estimate_memory(plan: Plan, gpu: GPU | None = None) -> dict:
    """Returns the bytes that a rank's tensors take at their peak, and which GPUs hold them, for JSON.

    A tenth of a GPU is left for what is no tensor; that share is assumed. Raises InputError, with the largest
    --gpu-batch-max that fits, where `gpu` cannot hold the batch.
    """
    memory = _memory(plan)
    if "unknown" in memory:
        if gpu is not None:
            raise InputError(f"--gpu {gpu.name}: memory cannot be followed here ({memory['unknown']}); leave --gpu out")
        return memory
    memory |= {"reserve": RESERVE, "gpu": gpu._asdict() if gpu else None}
    if plan.device != "cpu":
        memory["held_by"] = [one.name for one in GPUS if _holds(one, memory)]
    if gpu is not None and not _holds(gpu, memory):
        raise InputError(_refusal(plan, gpu, memory["peak"]))
    return memory


def _holds(gpu: GPU, memory: dict) -> bool:
    return memory["peak"] <= (1 - RESERVE) * gpu.bytes


def _refusal(plan: Plan, gpu: GPU, peak: int) -> str:
    per_gpu = plan.batch_size * plan.accum_freq
    smaller = [size for size in divisors(per_gpu) if size < plan.batch_size]
    fits = 0
    while smaller:  # by halves: what a batch takes grows with it
        size = smaller[len(smaller) // 2]
        if _holds(gpu, _memory(dataclasses.replace(plan, batch_size=size, accum_freq=per_gpu // size))):
            fits, smaller = size, [larger for larger in smaller if larger > size]
        else:
            smaller = [less for less in smaller if less < size]
    checkpointing = "" if plan.recipe.flags.get("grad-checkpointing") else " or --set flags.grad-checkpointing=true"
    advice = f"--gpu-batch-max {fits} fits" if fits else f"no batch fits: give more GPUs{checkpointing}"
    return (
        f"--gpu: {plan.batch_size:,} samples take {peak / 1e9:,.3g} GB, and {gpu.name} has {gpu.bytes / 1e9:,.3g} GB, "
        f"of which a tenth is left for what is no tensor; {advice}"
    )


def _memory(plan: Plan) -> dict:
    """Returns the bytes of a rank, or under "unknown" why they are not."""
    args = vars(check_command(plan.command))
    if args["distill_model"] is not None:
        return {"unknown": "a teacher beside the model"}
    with_head = plan.recipe.superclip is not None
    inputs = {name: args[name] for name in ASKED if name in args}

    def trace() -> dict:
        from .training_memory import trace_step  # OpenCLIP takes seconds to import

        return trace_step(argparse.Namespace(**inputs), plan.world_size, with_head)

    try:
        return kept("memory", {**inputs, "world_size": plan.world_size, "with_head": with_head}, trace)
    except Exception as error:  # a tower that tensors without values cannot pass, or one of a hub that is not reached
        return {"unknown": f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"}
