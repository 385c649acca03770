"""Averages checkpoints, and interpolates between released and fine-tuned weights."""

import contextlib

from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from ..errors import InputError
from ..method.head import NUM_CAPTIONS, head_input_of
from .architecture import architecture_of
from .trainer_files import run_options
from .weights import Checkpoint, Weights, check_match, check_values


def average(checkpoints: list[Checkpoint]) -> Weights:
    """Returns the mean of the checkpoints' weights, computed in float64 and cast to the original
    types.

    Integers are not averaged, but copied from the checkpoint that has seen most captions, or from
    the last one.
    """
    first, *others = checkpoints
    for checkpoint in checkpoints:
        check_values(checkpoint.weights, str(checkpoint.path))
    for other in others:
        _check_fit(other, first, other.weights, first.weights)
    latest = max(
        reversed(checkpoints), key=lambda checkpoint: int(checkpoint.weights.get(NUM_CAPTIONS, 0))
    )
    merged = dict(latest.weights)
    for name, tensor in merged.items():
        if tensor.is_floating_point():
            total = sum(checkpoint.weights[name].double() for checkpoint in checkpoints)
            merged[name] = (total / len(checkpoints)).to(tensor.dtype)
    return merged


def interpolate(released: Checkpoint, tuned: Checkpoint, alpha: float) -> Weights:
    """Returns (1 - alpha) * released + alpha * tuned (WiSE-FT, arXiv 2109.01903), computed in
    float64.

    Integers are copied from the tuned weights, and so is a class head that the released weights
    lack. A class head that only the released weights have is dropped.
    """
    head = tuned.head()
    start = released.weights if head else released.without_head()
    end = tuned.without_head() | (head if released.head() else {})
    _check_fit(released, tuned, start, end)
    for checkpoint in (released, tuned):
        check_values(checkpoint.weights, str(checkpoint.path))
    merged = head | end
    for name, tensor in end.items():
        if tensor.is_floating_point():
            merged[name] = ((1 - alpha) * start[name].double() + alpha * tensor.double()).to(
                tensor.dtype
            )
    return merged


def _check_fit(left: Checkpoint, right: Checkpoint, weights: Weights, expected: Weights) -> None:
    """Raises InputError unless two checkpoints are of one model."""
    check_match(weights, expected, str(left.path), str(right.path))
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
        architecture = architecture_of(checkpoint.path, run_options(checkpoint))
        preprocessing = merge_preprocess_dict(PreprocessCfg(), architecture.preprocess_cfg)
        facts["quick_gelu"] = architecture.model_cfg.get("quick_gelu", False)
        facts |= {f"image {name}": list(preprocessing[name]) for name in ("mean", "std")}
    return facts
