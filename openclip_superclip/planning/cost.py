"""What a plan costs: FLOPs, GPU-hours, bytes on disk."""

from .kept_results import kept
from .plan import Plan


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
    counts = _counts(plan)
    gmacs = counts.pop("gmacs")
    passes = 3 + bool(flags.get("grad-checkpointing")) + (plan.accum_freq > 1)
    flops_per_sample = 2e9 * ((gmacs["vision"] + gmacs["text"]) * passes + 3 * gmacs["head"] * with_head)
    seconds = plan.samples / samples_per_second if samples_per_second else None
    flops = flops_per_sample * plan.samples
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
        **counts,
        "disk_bytes": plan.most_checkpoints * counts["checkpoint_bytes"],
    }


def checkpoint_bytes(plan: Plan) -> int:
    """Returns the bytes of one checkpoint of the plan's."""
    return _counts(plan)["checkpoint_bytes"]


def _counts(plan: Plan) -> dict:
    """Returns what is counted of the plan's model, InputError where OpenCLIP does not know it."""
    recipe = plan.recipe
    inputs = {
        "model": recipe.model,
        "precision": recipe.precision,
        "patch_dropout": float(recipe.flags.get("force-patch-dropout", 0)),
        "with_head": recipe.superclip is not None,
        "counts_special": bool((recipe.superclip or {}).get("special_tokens", False)),
    }

    def count() -> dict:
        from .model_counts import count_model  # OpenCLIP takes seconds to import

        return count_model(**inputs)

    return kept("model", inputs, count)
