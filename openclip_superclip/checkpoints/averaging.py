"""Averages checkpoints, and interpolates between released and fine-tuned weights."""

import contextlib
from pathlib import Path

from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from ..errors import InputError
from ..files import check_out, whole_output
from ..method.head import NUM_CAPTIONS, head_input_of
from .architecture import architecture_of
from .hugging_face import TOWERS
from .starting_weights import released_file
from .trainer_files import options_to_keep
from .weights import (
    OPTIONS,
    Checkpoint,
    Weights,
    check_match,
    check_values,
    read_checkpoint,
    save_weights,
)

# fields that change what OpenCLIP's own towers compute, but no tensor's name or shape
OWN_TOWERS = {
    "vision_cfg": (
        "head_width",
        "pool_type",
        "final_ln_after_pool",
        "attn_pooler_heads",
        "act_kwargs",
    ),
    "text_cfg": ("heads", "pool_type", "no_causal_mask", "eos_id", "act_kwargs"),
}
# of timm and transformers
OTHER_TOWERS = {"timm_model_name": "timm_pool", "hf_model_name": "hf_pooler_type"}


def average(paths: list[Path], out: Path, *, overwrite: bool) -> None:
    """Writes the mean of the checkpoints' weights, computed in float64 and cast to the original
    types.

    Integers are not averaged, but copied from the checkpoint that has seen most captions, or from
    the last one.
    """
    check_out(out, paths, OPTIONS, overwrite=overwrite)
    checkpoints = [read_checkpoint(path) for path in paths]
    first = checkpoints[0]
    for checkpoint in checkpoints:
        check_values(checkpoint.weights, checkpoint.path)
        _check_fit(checkpoint, first, checkpoint.weights, first.weights)
    latest = max(
        reversed(checkpoints), key=lambda checkpoint: int(checkpoint.weights.get(NUM_CAPTIONS, 0))
    )
    merged = dict(latest.weights)
    for name, tensor in merged.items():
        if tensor.is_floating_point():
            total = sum(checkpoint.weights[name].double() for checkpoint in checkpoints)
            merged[name] = (total / len(checkpoints)).to(tensor.dtype)
    _write(merged, first, out, overwrite=overwrite)


def interpolate(
    released_name: str, tuned_path: Path, alpha: float, out: Path, *, overwrite: bool
) -> None:
    """Writes `interpolated` weights, with the options of the run of the tuned ones."""
    check_out(out, [released_name, tuned_path], OPTIONS, overwrite=overwrite)
    released = read_checkpoint(released_file(released_name, "RELEASED"))
    tuned = read_checkpoint(tuned_path)
    _write(interpolated(released, tuned, alpha), tuned, out, overwrite=overwrite)


def interpolated(released: Checkpoint, tuned: Checkpoint, alpha: float) -> Weights:
    """Returns (1 - alpha) * released + alpha * tuned (WiSE-FT, arXiv 2109.01903), computed in
    float64.

    Integers are copied from the tuned weights, and so is a class head that the released weights
    lack. A class head that only the released weights have is dropped. Raises InputError if the
    checkpoints are of two models, or contain values that are not finite.
    """
    head = tuned.head()
    start = released.weights if head else released.without_head()
    end = tuned.without_head() | (head if released.head() else {})
    _check_fit(released, tuned, start, end)
    for checkpoint in (released, tuned):
        check_values(checkpoint.weights, checkpoint.path)
    merged = head | end
    for name, tensor in end.items():
        if tensor.is_floating_point():
            merged[name] = ((1 - alpha) * start[name].double() + alpha * tensor.double()).to(
                tensor.dtype
            )
    return merged


def _write(weights: Weights, source: Checkpoint, out: Path, *, overwrite: bool) -> None:
    """Writes weights with the options of the run of `source`."""
    with whole_output(out, overwrite=overwrite) as file:
        save_weights(weights, file, options_to_keep(source))


def _check_fit(left: Checkpoint, right: Checkpoint, weights: Weights, expected: Weights) -> None:
    """Raises InputError unless two checkpoints are of one model."""
    check_match(weights, expected, left.path, right.path)
    others = _facts(right, expected)
    for name, fact in _facts(left, weights).items():
        if fact != others.get(name, fact):
            raise InputError(
                f"{left.path} does not match {right.path}: its {name} is {fact}, expected "
                f"{others[name]}"
            )


def _facts(checkpoint: Checkpoint, weights: Weights) -> dict:
    """Returns what the names and shapes of weights do not show; only the head's input if the
    model is unknown."""
    facts = {"class head's input": head_input_of(weights)}
    with contextlib.suppress(InputError):
        architecture = architecture_of(checkpoint)
        preprocessing = merge_preprocess_dict(PreprocessCfg(), architecture.preprocess_cfg)
        facts["quick_gelu"] = architecture.model_cfg.get("quick_gelu", False)
        for tower, names in OWN_TOWERS.items():
            values = {**vars(TOWERS[tower]()), **architecture.model_cfg[tower]}
            other = [pooling for model, pooling in OTHER_TOWERS.items() if values.get(model)]
            facts |= {f"{tower} {name}": values[name] for name in other or names}
        facts |= {f"image {name}": list(preprocessing[name]) for name in ("mean", "std")}
        facts |= {f"image {name}": preprocessing[name] for name in ("interpolation", "resize_mode")}
    return facts
