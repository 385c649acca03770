"""Averages checkpoints, and interpolates between released and fine-tuned weights."""

from pathlib import Path

from torch import Tensor

from ..errors import InputError
from ..files import content_digest, file_identity
from ..method.head import head_input_of
from . import is_sharded
from .checkpoint import DOCUMENT_FREQUENCY, NUM_CAPTIONS, Checkpoint, check_match, check_values, file_of_weights
from .run_outputs import options_to_keep


def average(checkpoints: list[Checkpoint], add_counts: bool = False) -> dict[str, Tensor]:
    """Returns the mean of the checkpoints' weights, computed in float64 and cast to the original types.

    Integers are not averaged, but copied from the checkpoint that has seen most captions, or from the last one.

    Args:
        checkpoints: two or more checkpoints of one model.
        add_counts: whether to add up the token statistics. This is right for separate runs, but wrong for checkpoints
            of one run, because each includes the counts of earlier ones.
    """
    first, *others = checkpoints
    if add_counts:
        _refuse_twice(checkpoints)
    for checkpoint in checkpoints:
        check_values(checkpoint.weights, str(checkpoint.path))
    for other in others:
        _check_fit(other, first, other.weights, first.weights)
    latest = max(reversed(checkpoints), key=lambda checkpoint: int(checkpoint.weights.get(NUM_CAPTIONS, 0)))
    merged = {}
    for name, tensor in latest.weights.items():
        if tensor.is_floating_point():
            total = sum(checkpoint.weights[name].double() for checkpoint in checkpoints)
            tensor = (total / len(checkpoints)).to(tensor.dtype)
        elif add_counts and name in (NUM_CAPTIONS, DOCUMENT_FREQUENCY):
            tensor = sum(checkpoint.weights[name] for checkpoint in checkpoints)
        merged[name] = tensor
    return merged


def _refuse_twice(checkpoints: list[Checkpoint]) -> None:
    """Raises InputError if a checkpoint is given twice, because its captions would be counted twice."""
    seen: dict[str, Path] = {}
    for checkpoint in checkpoints:
        file = file_of_weights(checkpoint.path)
        content = str(file.resolve()) if is_sharded(checkpoint.path) else file_identity(file) or content_digest(file)
        if content in seen:
            raise InputError(
                f"--add-counts: {checkpoint.path} and {seen[content]} are the same checkpoint, whose captions would be "
                "counted twice: leave one of them out"
            )
        seen[content] = checkpoint.path


def _check_fit(one: Checkpoint, other: Checkpoint, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raises InputError unless the weights of two checkpoints match and their class heads have the same input."""
    check_match(found, expected, str(one.path), str(other.path))
    reads, expected_reads = head_input_of(found), head_input_of(expected)
    if reads != expected_reads:
        raise InputError(
            f"{one.path} does not match {other.path}: its class head reads {reads}, expected {expected_reads}"
        )


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
    merged = dict(head)
    for name, tensor in end.items():
        if tensor.is_floating_point():
            tensor = ((1 - alpha) * start[name].double() + alpha * tensor.double()).to(tensor.dtype)
        merged[name] = tensor
    return merged


def options_of_all(checkpoints: list[Checkpoint]) -> dict:
    """Returns the options to record for a mean: the first checkpoint's model, and superclip options that all share."""
    first, *others = map(options_to_keep, checkpoints)
    return {
        name: value
        for name, value in first.items()
        if not name.startswith("superclip_") or all(other.get(name) == value for other in others)
    }
