"""Imports checkpoints of the SuperCLIP authors' code."""

from pathlib import Path

import torch

from ..errors import InputError, listed
from ..files import check_out, whole_output
from ..method.head import (
    AUTHORS_HEAD,
    AUTHORS_STATISTICS,
    DOCUMENT_FREQUENCY,
    NUM_CAPTIONS,
)
from . import WEIGHTS_NAMES
from .architecture import expected_head, fit, read_architecture
from .export import write_model
from .weights import MAX_CAPTIONS, Weights, check_match, check_values, read_checkpoint

FLOAT32 = 2**-24  # relative rounding error of each fraction
NEAR = 0.02  # tolerance for whole counts


def from_authors(weights: Weights, global_batch: int) -> Weights:
    """Returns the authors' weights under the names of OpenCLIP and of this package.

    `cap_fq` is the sum over steps of the fraction of the global batch's captions that contain each
    token, and `num_samples` is the number of steps. Multiplied by the global batch size, these are
    counts. Each fraction was rounded to float32 before it was added in float64. This is exact if
    the global batch size is a power of two. Otherwise rounding to integers restores all counts
    below 8 million, and changes IDF weights by less than 1e-7.

    Raises InputError if the head is missing, incomplete or has hidden layers, or if the statistics
    are impossible.
    """
    missing = [name for name in (*AUTHORS_HEAD, *AUTHORS_STATISTICS) if name not in weights]
    if missing:
        raise InputError(f"not a checkpoint of SuperCLIP's authors: it lacks {listed(missing)}")
    hidden = sorted(
        name for name in weights if name.startswith("text_decoder.") and name not in AUTHORS_HEAD
    )
    if hidden:
        raise InputError(f"its head has hidden layers; ours is one linear layer: {listed(hidden)}")
    if weights["num_samples"].numel() != 1:
        raise InputError(
            f"num_samples is {list(weights['num_samples'].shape)}, expected one number"
        )
    steps = weights["num_samples"].double().item()
    means = weights["cap_fq"].double().flatten()
    if not 0 <= steps * global_batch < MAX_CAPTIONS:
        raise InputError(f"num_samples is {steps:g}; expected the number of the run's steps")
    wrong = means[~((means >= 0) & (means <= steps * (1 + FLOAT32)))]  # NaN is wrong too
    if len(wrong):
        raise InputError(f"cap_fq contains {wrong[0]:g}; expected 0 to {steps:g}, num_samples")
    ours = {
        AUTHORS_HEAD.get(name, name): tensor
        for name, tensor in weights.items()
        if name not in AUTHORS_STATISTICS
    }
    ours[NUM_CAPTIONS] = torch.tensor(round(steps * global_batch))
    ours[DOCUMENT_FREQUENCY] = (means * global_batch).round().to(torch.int64)
    return ours


def import_checkpoint(
    file: Path, model: str, out: Path, global_batch: int, *, overwrite: bool
) -> tuple[int, bool]:
    """Writes the folder `out`, which is never left incomplete.

    Returns the number of captions counted, and whether `global_batch` (captions per step over all
    GPUs) gives whole counts.
    """
    # export writes the head into a file of its own
    own_head = {WEIGHTS_NAMES[0]: '"class_head.weight"'}
    inputs = [file, *model.split("local-dir:")[1:]]
    check_out(out, inputs, own_head, overwrite=overwrite)
    architecture = read_architecture(model)
    architecture.model_cfg.pop("clstext_cfg", None)  # the authors' description of the head
    theirs = read_checkpoint(file, of_authors=True).weights
    check_values(theirs, file)
    try:
        weights = from_authors(theirs, global_batch)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    model_cfg = architecture.model_cfg
    if not (model_cfg.get("custom_text") or "hf_model_name" in model_cfg["text_cfg"]):
        # OpenCLIP's CLIP has no separate module for the text tower
        weights = {name.removeprefix("text."): tensor for name, tensor in weights.items()}
    architecture, weights = fit(architecture, weights)
    plain = architecture.build()
    check_match(weights, plain.state_dict() | expected_head(plain), file, model)
    with whole_output(out, overwrite=overwrite) as folder:
        folder.mkdir()
        write_model(folder, out, architecture, plain, weights)
    counts = theirs["cap_fq"].double() * global_batch
    # the rounding error of larger ones hides their fraction
    counts = counts[counts * FLOAT32 < NEAR / 2]
    return weights[NUM_CAPTIONS].item(), bool(((counts - counts.round()).abs() < NEAR).all())
