"""Whether weights are what a model expects, and numbers that can be."""

import torch
from torch import Tensor

from ..errors import InputError

NUM_SHOWN = 3  # mismatches: enough to see what kind they are
NUM_CAPTIONS, DOCUMENT_FREQUENCY = "statistics.num_captions", "statistics.document_frequency"


def check_match(weights: dict[str, Tensor], expected: dict[str, Tensor], what: str, model: str) -> None:
    """Raises InputError, with the first mismatches, unless the weights are what `model` expects.

    That is its names and shapes, and whole numbers where it has whole numbers.
    """
    names = sorted(weights.keys() | expected.keys())
    mismatches = [m for name in names if (m := _mismatch(name, weights.get(name), expected.get(name)))]
    if mismatches:
        shown = "; ".join(mismatches[:NUM_SHOWN])
        more = f"; and {len(mismatches) - NUM_SHOWN} more" if len(mismatches) > NUM_SHOWN else ""
        raise InputError(f"{what} does not match {model}: {shown}{more}")


def check_kinds(weights: dict[str, Tensor], what: str) -> None:
    """Raises InputError, with the name, for a tensor that holds no plain numbers: sparse, quantized, complex."""
    for name, tensor in weights.items():
        if tensor.is_meta:
            kind = "on the meta device, a shape without numbers"
        elif tensor.layout is not torch.strided:
            kind = f"sparse ({tensor.layout})".replace("torch.", "")
        elif tensor.is_quantized:
            kind = f"quantized ({_type(tensor)})"
        elif tensor.is_complex():
            kind = f"complex ({_type(tensor)})"
        else:
            continue
        raise InputError(f"{what}: {name} is {kind}; expected a dense tensor of real numbers")


def check_values(weights: dict[str, Tensor], what: str) -> None:
    """Raises InputError, with the name, for weights that are NaN or infinite and for counts that cannot be."""
    for name, tensor in weights.items():
        if not is_finite(tensor):
            wrong = int((~tensor.isfinite()).sum())
            raise InputError(
                f"{what}: {name} holds NaN or infinity ({wrong:,} of {tensor.numel():,} values): the run that wrote it "
                "has diverged; take an earlier checkpoint"
            )
    if NUM_CAPTIONS in weights and DOCUMENT_FREQUENCY in weights:
        _check_counts(weights[NUM_CAPTIONS], weights[DOCUMENT_FREQUENCY], what)


def is_finite(tensor: Tensor) -> bool:
    """Tells whether a tensor holds neither NaN nor infinity, without a copy of it."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.element_size() == 1:  # float8, of which torch has no minimum
        tensor = tensor.float()
    return all(bound.isfinite() for bound in tensor.aminmax())  # NaN is the minimum wherever it stands


def _check_counts(num_captions: Tensor, document_frequency: Tensor, what: str) -> None:
    for name, tensor in ((NUM_CAPTIONS, num_captions), (DOCUMENT_FREQUENCY, document_frequency)):
        if tensor.is_floating_point() or tensor.dtype == torch.bool:
            raise InputError(f"{what}: {name} is {_type(tensor)}, expected whole numbers")
    if num_captions.numel() != 1 or document_frequency.ndim != 1:
        raise InputError(
            f"{what}: {NUM_CAPTIONS} is {list(num_captions.shape)} and {DOCUMENT_FREQUENCY} "
            f"{list(document_frequency.shape)}; expected one number and one for each token"
        )
    total = num_captions.item()
    if total < 0:
        raise InputError(f"{what}: {NUM_CAPTIONS} is {total:,}; expected 0 or more")
    wrong = (document_frequency < 0) | (document_frequency > total)
    if wrong.any():
        token = int(wrong.int().argmax())
        raise InputError(
            f"{what}: {DOCUMENT_FREQUENCY}[{token}] is {document_frequency[token].item():,}; expected 0 to {total:,}, "
            "the number of captions"
        )


def _mismatch(name: str, tensor: Tensor | None, expected: Tensor | None) -> str | None:
    if tensor is None or expected is None or tensor.shape != expected.shape:
        return f"{name} is {_shape(tensor, 'missing')}, expected {_shape(expected, 'no such name')}"
    if tensor.is_floating_point() != expected.is_floating_point():
        return f"{name} is {_type(tensor)}, expected {_type(expected)}"
    return None


def _shape(tensor: Tensor | None, otherwise: str) -> str:
    return otherwise if tensor is None else str(list(tensor.shape))


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
