"""Averages of checkpoints, and interpolation between released and fine-tuned weights."""

from pathlib import Path

from torch import Tensor

from ..errors import InputError
from ..files import content_digest, file_identity
from ..method.head import head_input_of
from .checkpoint import (
    DOCUMENT_FREQUENCY,
    NUM_CAPTIONS,
    Checkpoint,
    check_match,
    check_values,
    file_of_weights,
)
from .run_outputs import options_to_keep

COUNTS = (NUM_CAPTIONS, DOCUMENT_FREQUENCY)


def average(checkpoints: list[Checkpoint], add_counts: bool = False) -> dict[str, Tensor]:
    """Returns the mean of the checkpoints' weights, taken in float64, each in its own type.

    Whole numbers are not averaged: they are those of the checkpoint that has seen most captions, or the last. The
    captions' counts are added with `add_counts`: right for runs of their own, wrong for steps of one run, each
    of which holds the earlier ones' counts already.
    """
    first, *others = checkpoints
    if add_counts:
        _refuse_twice(checkpoints)
    for checkpoint in checkpoints:
        check_values(checkpoint.weights, str(checkpoint.path))
    for other in others:
        check_match(other.weights, first.weights, str(other.path), str(first.path))
        _check_head_inputs(other, first)
    latest = max(reversed(checkpoints), key=_num_captions)
    merged = {}
    for name, tensor in latest.weights.items():
        if tensor.is_floating_point():
            total = sum(checkpoint.weights[name].double() for checkpoint in checkpoints)
            tensor = (total / len(checkpoints)).to(tensor.dtype)
        elif add_counts and name in COUNTS:
            tensor = sum(checkpoint.weights[name] for checkpoint in checkpoints)
        merged[name] = tensor
    return merged


def _refuse_twice(checkpoints: list[Checkpoint]) -> None:
    """Raises InputError for a checkpoint that is given twice: its captions would be counted twice."""
    seen: dict[str, Path] = {}
    for checkpoint in checkpoints:
        file = file_of_weights(checkpoint.path)
        content = file_identity(file) or (content_digest(file) if file.is_file() else str(file.resolve()))
        if content in seen:
            raise InputError(
                f"--add-counts: {checkpoint.path} and {seen[content]} are the same checkpoint, whose captions would be "
                "counted twice: leave one of them out"
            )
        seen[content] = checkpoint.path


def interpolate(released: Checkpoint, tuned: Checkpoint, alpha: float) -> dict[str, Tensor]:
    """Returns (1 - alpha) * released + alpha * tuned (WiSE-FT, arXiv 2109.01903), taken in float64.

    Whole numbers, and a class head that the released weights lack, are the tuned ones'. One that the tuned ones lack is
    left out.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"--alpha is {alpha}; expected 0 (released) to 1 (tuned)")
    head = tuned.head()
    start = released.weights if head else released.without_head()
    end = tuned.without_head() | (head if released.head() else {})
    check_match(start, end, str(released.path), str(tuned.path))
    if released.head() and head:
        _check_head_inputs(released, tuned)
    for checkpoint in (released, tuned):
        check_values(checkpoint.weights, str(checkpoint.path))
    merged = dict(head)
    for name, tensor in end.items():
        if tensor.is_floating_point():
            tensor = ((1 - alpha) * start[name].double() + alpha * tensor.double()).to(tensor.dtype)
        merged[name] = tensor
    return merged


def _check_head_inputs(one: Checkpoint, other: Checkpoint) -> None:
    found, expected = head_input_of(one.weights), head_input_of(other.weights)
    if found != expected:
        raise InputError(f"{one.path} does not match {other.path}: its class head reads {found}, expected {expected}")


def options_of_all(checkpoints: list[Checkpoint]) -> dict:
    """Returns what a mean of checkpoints remembers of their runs: the first one's model, and what all agree on."""
    first, *others = map(options_to_keep, checkpoints)
    of_the_model = {name: value for name, value in first.items() if not name.startswith("superclip_")}
    return of_the_model | {
        name: value for name, value in first.items() if all(other.get(name) == value for other in others)
    }


def _num_captions(checkpoint: Checkpoint) -> int:
    return int(checkpoint.weights.get(NUM_CAPTIONS, 0))
