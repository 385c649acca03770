"""Averages checkpoints, and interpolates between released and fine-tuned weights."""

from torch import Tensor

from ..errors import InputError
from ..method.head import head_input_of
from .checkpoint import NUM_CAPTIONS, Checkpoint, check_match, check_values


def average(checkpoints: list[Checkpoint]) -> dict[str, Tensor]:
    """Returns the mean of the checkpoints' weights, computed in float64 and cast to the original types.

    Integers are not averaged, but copied from the checkpoint that has seen most captions, or from the last one.
    """
    first, *others = checkpoints
    for checkpoint in checkpoints:
        check_values(checkpoint.weights, str(checkpoint.path))
    for other in others:
        _check_fit(other, first, other.weights, first.weights)
    latest = max(reversed(checkpoints), key=lambda checkpoint: int(checkpoint.weights.get(NUM_CAPTIONS, 0)))
    merged = dict(latest.weights)
    for name, tensor in merged.items():
        if tensor.is_floating_point():
            total = sum(checkpoint.weights[name].double() for checkpoint in checkpoints)
            merged[name] = (total / len(checkpoints)).to(tensor.dtype)
    return merged


def interpolate(released: Checkpoint, tuned: Checkpoint, alpha: float) -> dict[str, Tensor]:
    """Returns (1 - alpha) * released + alpha * tuned (WiSE-FT, arXiv 2109.01903), computed in float64.

    Integers are copied from the tuned weights, and so is a class head that the released weights lack. A class head that
    only the released weights have is dropped.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"--alpha is {alpha}; expected 0 (released) to 1 (tuned)")
    head = tuned.head()
    start = released.weights if head else released.without_head()
    end = tuned.without_head() | (head if released.head() else {})
    _check_fit(released, tuned, start, end)
    for checkpoint in (released, tuned):
        check_values(checkpoint.weights, str(checkpoint.path))
    merged = head | end
    for name, tensor in end.items():
        if tensor.is_floating_point():
            merged[name] = ((1 - alpha) * start[name].double() + alpha * tensor.double()).to(tensor.dtype)
    return merged


def _check_fit(one: Checkpoint, other: Checkpoint, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raises InputError unless the weights of two checkpoints match and their class heads have the same input."""
    check_match(found, expected, str(one.path), str(other.path))
    reads, expected_reads = head_input_of(found), head_input_of(expected)
    if reads != expected_reads:
        raise InputError(
            f"{one.path} does not match {other.path}: its class head reads {reads}, expected {expected_reads}"
        )
