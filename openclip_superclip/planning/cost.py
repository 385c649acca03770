"""What a plan costs: FLOPs, GPU-hours, bytes on disk."""

import os

from open_clip import get_model_config, get_tokenizer

from ..errors import InputError
from ..method.flops import count_gmacs, model_without_weights
from ..method.token_statistics import special_token_ids
from ..model_files import know_model
from .plan import Plan

HALF = ("bf16", "fp16", "pure_bf16", "pure_fp16")  # precisions that keep the weights in two bytes


def estimate_cost(plan: Plan, mfu: float, gpu_tflops: float, samples_per_second: float | None = None) -> dict:
    """Returns the plan's costs, for JSON.

    FLOPs are those of the towers and the head, two a multiplication with addition: the backward pass is two forward
    ones, gradient checkpointing and accumulation are one more each, of the towers. The contrastive loss's own products,
    0.12 % of these at ViT-B/16 and batch 32,768, and the optimizer's are left out.

    Args:
        mfu: the share of its peak that a GPU reaches, all of these FLOPs counted.
        gpu_tflops: that peak, in 10^12 FLOPs a second.
        samples_per_second: of all GPUs together, where it was measured.
    """
    flags = plan.recipe.flags
    with_head = plan.recipe.superclip is not None
    model = _model(plan)
    gmacs = count_gmacs(plan.recipe.model, patch_dropout=float(flags.get("force-patch-dropout", 0)))
    passes = 3 + bool(flags.get("grad-checkpointing")) + (plan.accum_freq > 1)
    flops_per_sample = 2e9 * ((gmacs["vision"] + gmacs["text"]) * passes + 3 * gmacs["head"] * with_head)
    seconds = plan.samples / samples_per_second if samples_per_second else None
    flops = flops_per_sample * plan.samples
    sizes = _sizes(model, plan.recipe.precision, with_head)
    gpu_hours = flops / (gpu_tflops * 1e12 * mfu) / 3600
    return {
        "forward_gmacs": gmacs,
        "flops_per_sample": flops_per_sample,
        "flops": flops,
        "mfu": mfu,
        "gpu_tflops": gpu_tflops,
        "gpu_hours": seconds * plan.world_size / 3600 if seconds else gpu_hours,
        "hours": seconds / 3600 if seconds else gpu_hours / plan.world_size,
        "samples_per_second": samples_per_second,
        "slice_minutes": plan.slice_steps * plan.global_batch_size / samples_per_second / 60 if seconds else None,
        **sizes,
        "disk_bytes": plan.most_checkpoints * sizes["checkpoint_bytes"],
        **(_head(plan, model) if with_head else {}),
    }


def checkpoint_bytes(plan: Plan) -> int:
    """Returns the bytes of one checkpoint of the plan's."""
    return _sizes(_model(plan), plan.recipe.precision, plan.recipe.superclip is not None)["checkpoint_bytes"]


def _model(plan: Plan):
    """Returns the plan's model as shapes alone; InputError where OpenCLIP does not know it."""
    name = plan.recipe.model
    folder = name.removeprefix("local-dir:")
    if folder != name and not os.path.isfile(f"{folder}/open_clip_config.json"):
        hint = "; superclip demo --data-only writes the demo's" if folder == "demo/model" else ""
        raise InputError(f"model: there is no {folder}/open_clip_config.json{hint}")
    know_model(name, "model")
    if get_model_config(name) is None:
        raise InputError(f"model: OpenCLIP has no model {name}; open_clip.list_models() names those it has")
    return model_without_weights(name)


def _head(plan: Plan, model) -> dict:
    """Returns what the class head tells apart: the tokens of the vocabulary, and those of them that are no words."""
    counts_special = plan.recipe.superclip.get("special_tokens", False)
    special = () if counts_special else special_token_ids(get_tokenizer(plan.recipe.model))
    return {"vocabulary": model.statistics.vocab_size, "ignored_tokens": len(special)}


def _sizes(model, precision: str, with_head: bool) -> dict:
    """Returns the parameters, and the bytes of a checkpoint: weights, AdamW's two moments of each, and counts."""
    ours = ("class_head.", "statistics.")
    num_bytes = 2 if precision in HALF else 4
    parameters = {name: tensor for name, tensor in model.named_parameters() if with_head or not name.startswith(ours)}
    num_parameters = sum(tensor.numel() for tensor in parameters.values())
    others = [
        tensor
        for name, tensor in model.state_dict().items()
        if name not in parameters and (with_head or not name.startswith(ours))
    ]
    return {
        "parameters": num_parameters,
        "head_parameters": sum(tensor.numel() for tensor in model.class_head.parameters()) if with_head else 0,
        "checkpoint_bytes": 3 * num_bytes * num_parameters + sum(tensor.nbytes for tensor in others),
    }
