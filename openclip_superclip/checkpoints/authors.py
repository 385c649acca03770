"""The checkpoints of SuperCLIP's authors under our names."""

from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError, listed
from ..files import check_folder_out, whole_output
from .architecture import expected_head, fit, read_architecture
from .checkpoint import DOCUMENT_FREQUENCY, MAX_CAPTIONS, NUM_CAPTIONS, check_match, check_values, read_checkpoint
from .export import write_model

LARGEST = 2**17  # global batches that are tried
RAREST = 64  # tokens that test a batch first: their counts are small, and rounded little
NEAR = 0.02  # distance from an integer of a count of rounded fractions
HEAD_NAMES = {
    "text_decoder.ln_mlp.weight": "class_head.ln.weight",
    "text_decoder.ln_mlp.bias": "class_head.ln.bias",
    "text_decoder.text_projection.weight": "class_head.weight",
    "text_decoder.text_projection.bias": "class_head.bias",
}
STATISTICS = ("cap_fq", "num_samples")
FLOAT32 = 2**-24  # the relative rounding of each fraction


def whole_counts(cap_fq: Tensor, batches: Tensor) -> Tensor:
    """Returns for each global batch [N] whether it gives whole counts, bool [N].

    Args:
        cap_fq: running means, float64 [V]; those whose counts float32 rounds too far are left out.
        batches: integers [N].
    """
    means = cap_fq[(cap_fq > 0) & (cap_fq * batches.max() * FLOAT32 < NEAR / 2)]
    counts = means * batches[:, None]
    return ((counts - counts.round()).abs() < NEAR).all(dim=1)


def fitting_batch(cap_fq: Tensor) -> int | None:
    """Returns the smallest global batch up to LARGEST that gives whole counts of means, float64 [V]; None without.

    Every multiple of the right batch gives whole counts too.
    """
    rarest = cap_fq[cap_fq > 0].sort().values[:RAREST]
    if not len(rarest) or rarest[0] * LARGEST * FLOAT32 >= NEAR / 2:
        return None
    fitting = torch.cat([part[whole_counts(rarest, part)] for part in torch.arange(1, LARGEST + 1).split(2**14)])
    return next((batch for batch in fitting.tolist() if whole_counts(cap_fq, torch.tensor([batch]))), None)


def from_authors(weights: dict[str, Tensor], global_batch: int) -> dict[str, Tensor]:
    """Returns the authors' weights under OpenCLIP's names and those of the class head and the token statistics.

    `cap_fq` adds up, over the steps, the fraction of the global batch's captions that contain each token, and
    `num_samples` counts steps: times the global batch these are counts. Each fraction was rounded to float32 before it
    was added in float64. That is exact if the global batch is a power of two; otherwise rounding restores every count
    below 8 million, and changes an IDF weight by less than 1e-7.

    Raises InputError, with the names, for a head that is missing, incomplete or has hidden layers, and for means that
    no run can have counted.
    """
    missing = [name for name in (*HEAD_NAMES, *STATISTICS) if name not in weights]
    if missing:
        raise InputError(f"this is no checkpoint of SuperCLIP's authors: it lacks {listed(missing)}")
    hidden = sorted(name for name in weights if name.startswith("text_decoder.") and name not in HEAD_NAMES)
    if hidden:
        raise InputError(f"its head has hidden layers, ours is one linear map: {listed(hidden)}")
    if weights["num_samples"].numel() != 1:
        raise InputError(f"num_samples is {list(weights['num_samples'].shape)}, expected one number")
    steps, means = weights["num_samples"].double().item(), weights["cap_fq"].double().flatten()
    if not 0 <= steps * global_batch < MAX_CAPTIONS:
        raise InputError(f"num_samples is {steps:g}; expected the number of the run's steps")
    wrong = means[~((means >= 0) & (means <= steps * (1 + FLOAT32)))]  # NaN is wrong too
    if len(wrong):
        raise InputError(f"cap_fq contains {wrong[0]:g}; expected 0 to {steps:g}, num_samples")
    ours = {HEAD_NAMES.get(name, name): tensor for name, tensor in weights.items() if name not in STATISTICS}
    ours[NUM_CAPTIONS] = torch.tensor(round(steps * global_batch))
    ours[DOCUMENT_FREQUENCY] = (means * global_batch).round().to(torch.int64)
    return ours


def import_checkpoint(
    file: Path, model: str, out: Path, global_batch: int, overwrite: bool = False
) -> tuple[int, list[str]]:
    """Writes the folder `out`, complete or not at all; returns the number of captions counted, and warnings.

    Args:
        file: the authors'.
        model: its configuration, as --model names it.
        out: the folder; with `overwrite` it is replaced as a whole.
        global_batch: captions of a step on all GPUs.
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
        # OpenCLIP's CLIP holds the text tower's parts itself
        weights = {name.removeprefix("text."): tensor for name, tensor in weights.items()}
    architecture, weights = fit(architecture, weights)
    plain = architecture.on_meta()
    check_match(weights, plain.state_dict() | expected_head(plain), str(file), model)
    with whole_output(out, overwrite) as folder:
        folder.mkdir()
        write_model(folder, architecture, plain, weights)
    return weights[NUM_CAPTIONS].item(), _batch_warnings(theirs["cap_fq"].double().flatten(), global_batch)


def _batch_warnings(cap_fq: Tensor, global_batch: int) -> list[str]:
    fitting = fitting_batch(cap_fq)
    if fitting == global_batch:
        return []
    if not whole_counts(cap_fq, torch.tensor([global_batch])):
        advice = f"--global-batch {fitting} gives whole ones" if fitting else "the run had another, or more than one"
        return [f"--global-batch {global_batch} gives counts that are not whole, {advice}; the import rounds them"]
    if fitting is None:
        return []
    return [
        f"--global-batch {global_batch}: every count is a multiple of {global_batch // fitting}; "
        f"--global-batch {fitting} gives whole counts too"
    ]
