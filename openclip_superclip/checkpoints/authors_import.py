"""Imports: a checkpoint of SuperCLIP's authors as a folder that --superclip opens."""

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..atomic_files import whole_output
from ..errors import InputError
from .architecture import fit, read_architecture, vocabulary_warnings
from .authors_checkpoint import from_authors, with_text_in_place
from .checkpoint import read_checkpoint
from .global_batch import fitting_batch, whole_counts
from .head_check import expected_head
from .model_folder import write_model
from .overwrite_check import check_folder_out
from .weights_check import NUM_CAPTIONS, check_match, check_values


class Import(NamedTuple):
    """What was written."""

    num_captions: int
    warnings: list[str]


def import_checkpoint(file: Path, model: str, out: Path, global_batch: int, overwrite: bool = False) -> Import:
    """Writes the folder `out`, whole or not at all, and returns what it holds.

    Args:
        file: the authors'.
        model: its configuration, as --model names it.
        out: the folder; with `overwrite` it is exchanged whole.
        global_batch: captions a step of the run had on all GPUs.
    """
    check_folder_out(out, overwrite, [file])
    architecture = read_architecture(model)
    architecture.model_cfg.pop("clstext_cfg", None)  # the authors' description of the head
    theirs = read_checkpoint(file, of_authors=True).weights
    check_values(theirs, str(file))
    try:
        weights = from_authors(theirs, global_batch)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    model_cfg = architecture.model_cfg
    if not (model_cfg.get("custom_text") or "hf_model_name" in model_cfg["text_cfg"]):
        weights = with_text_in_place(weights)
    architecture, weights = fit(architecture, weights)
    plain = architecture.on_meta()
    check_match(weights, plain.state_dict() | expected_head(plain), str(file), model)
    warnings = _batch_warnings(theirs["cap_fq"], global_batch) + vocabulary_warnings(architecture, plain)
    with whole_output(out, overwrite) as folder:
        folder.mkdir()
        write_model(folder, architecture, plain, weights)
    return Import(weights[NUM_CAPTIONS].item(), warnings)


def _batch_warnings(cap_fq: Tensor, global_batch: int) -> list[str]:
    fitting = fitting_batch(cap_fq)
    whole = whole_counts(cap_fq, global_batch)
    if fitting == global_batch or (whole and fitting is None):
        return []
    if whole:
        return [
            f"--global-batch {global_batch}: every count is a multiple of {global_batch // fitting}; "
            f"--global-batch {fitting} gives whole counts too"
        ]
    advice = f"--global-batch {fitting} gives whole ones" if fitting else "the run had another, or more than one"
    return [f"--global-batch {global_batch} gives counts that are not whole, {advice}: those in {{out}} are rounded"]
