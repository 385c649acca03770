"""Imports checkpoints of the SuperCLIP authors' code."""

from pathlib import Path

import torch

from ..errors import InputError, listed
from ..files import check_out, whole_output
from ..method.head import AUTHORS_HEAD, AUTHORS_STATISTICS, NUM_CAPTIONS, head_of
from . import WEIGHTS_NAMES
from .architecture import expected_head, fit, read_architecture
from .export import write_model
from .weights import Weights, check_match, check_values, read_checkpoint

FLOAT32 = 2**-24  # relative rounding error of each fraction
NEAR = 0.02  # tolerance for whole counts


def from_authors(weights: Weights, global_batch: int) -> Weights:
    """Returns the authors' weights under the names of OpenCLIP and of this package.

    `cap_fq` is the sum over steps of the fraction of the global batch's captions that contain each
    token, and `num_samples` is the number of steps. Multiplied by the global batch size, these are
    counts. Each fraction was rounded to float32 before it was added in float64. This is exact if
    the global batch size is a power of two. Otherwise rounding to integers restores all counts
    below 8 million, and changes IDF weights by less than 1e-7.
    """
    ours = {AUTHORS_HEAD.get(name, name): tensor for name, tensor in weights.items()}
    for theirs, count in AUTHORS_STATISTICS.items():
        ours[count] = (ours.pop(theirs).double() * global_batch).round().to(torch.int64).squeeze()
    return ours


def import_checkpoint(
    file: Path, model: str, out: Path, global_batch: int, *, overwrite: bool
) -> tuple[int, bool]:
    """Writes the folder `out`, which is never left incomplete.

    Returns the number of captions counted, and whether `global_batch` (captions per step over all
    GPUs) gives whole counts.
    """
    inputs = [file, *model.split("local-dir:")[1:]]
    # export writes the head into a file of its own
    check_out(out, inputs, '"class_head.weight"', WEIGHTS_NAMES[0], overwrite=overwrite)
    architecture = read_architecture(model)
    architecture.model_cfg.pop("clstext_cfg", None)  # the authors' description of the head
    theirs = read_checkpoint(file, of_authors=True).weights
    if missing := {*AUTHORS_HEAD, *AUTHORS_STATISTICS} - theirs.keys():
        raise InputError(
            f"{file} is not a checkpoint of SuperCLIP's authors: it lacks {listed(sorted(missing))}"
        )
    check_values(theirs, file)
    weights = from_authors(theirs, global_batch)
    model_cfg = architecture.model_cfg
    if not (model_cfg.get("custom_text") or "hf_model_name" in model_cfg["text_cfg"]):
        # OpenCLIP's CLIP has no separate module for the text tower
        weights = {name.removeprefix("text."): tensor for name, tensor in weights.items()}
    architecture, weights = fit(architecture, weights)
    plain = architecture.build()
    check_match(weights, plain.state_dict() | expected_head(plain), file, model)
    check_values(head_of(weights), file)  # the counts
    with whole_output(out, overwrite=overwrite) as folder:
        folder.mkdir()
        write_model(folder, out, architecture, plain, weights)
    counts = theirs["cap_fq"].double() * global_batch
    # the rounding error of larger ones hides their fraction
    counts = counts[counts * FLOAT32 < NEAR / 2]
    return weights[NUM_CAPTIONS].item(), bool(((counts - counts.round()).abs() < NEAR).all())
