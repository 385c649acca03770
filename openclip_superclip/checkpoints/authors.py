"""The checkpoints of SuperCLIP's authors under our names."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError, listed
from ..files import check_folder_out, whole_output
from .architecture import expected_head, fit, read_architecture, vocabulary_warnings
from .checkpoint import DOCUMENT_FREQUENCY, MAX_CAPTIONS, NUM_CAPTIONS, check_match, check_values, read_checkpoint
from .export import write_model

LARGEST = 2**17  # batches that are tried
RAREST = 64  # tokens by which a batch is tried first: their counts are small, and off by little
NEAR = 0.02  # how far from whole a count of rounded shares may be
HEAD_NAMES = {
    "text_decoder.ln_mlp.weight": "class_head.ln.weight",
    "text_decoder.ln_mlp.bias": "class_head.ln.bias",
    "text_decoder.text_projection.weight": "class_head.weight",
    "text_decoder.text_projection.bias": "class_head.bias",
}
STATISTICS = ("cap_fq", "num_samples")
FLOAT32 = 2**-24  # the rounding of each share, relative


def whole_counts(cap_fq: Tensor, global_batch: int) -> bool:
    """Returns whether the running means, times the batch, are whole numbers, as counts are."""
    return bool(_whole(_usable(cap_fq, global_batch)[None], torch.tensor([global_batch])).item())


def fitting_batch(cap_fq: Tensor, largest: int = LARGEST) -> int | None:
    """Returns the smallest global batch with which all running means, float64 [V], give whole counts; None without.

    Every multiple of the right batch gives whole counts too.
    """
    means = _usable(cap_fq, largest)
    rarest = means.sort().values[:RAREST]
    if not len(rarest):
        return None
    batches = torch.arange(1, largest + 1)
    fitting = torch.cat([part[_whole(rarest[None], part)] for part in batches.split(2**14)])
    return next((batch for batch in fitting.tolist() if whole_counts(means, batch)), None)


def _usable(cap_fq: Tensor, global_batch: int) -> Tensor:
    """Returns the means whose counts are small enough for their rounding to leave them near whole numbers."""
    means = cap_fq.double().flatten()
    return means[(means > 0) & (means * global_batch * FLOAT32 < NEAR / 2)]


def _whole(means: Tensor, batches: Tensor) -> Tensor:
    """Returns for each batch [N] whether the means [1, V] times it are near whole numbers, bool [N]."""
    counts = means * batches[:, None]
    return ((counts - counts.round()).abs() < NEAR).all(dim=1)


def from_authors(weights: dict[str, Tensor], global_batch: int) -> dict[str, Tensor]:
    """Returns the authors' weights under OpenCLIP's names and those of the class head and the token statistics.

    The authors keep running means: `cap_fq` adds up, over the steps, the share of the global batch's captions that hold
    each token, and `num_samples` counts steps. Times the global batch these are the counts. Each share was rounded to
    float32 before it was added in float64: that is exact for a global batch that is a power of two, and otherwise off
    by less than 6e-8 of the count, so that rounding restores every count below 8 million and changes an IDF weight by
    less than 1e-7. With a wrong global batch the IDF weights of common tokens stay, as log((N + 1) / (df + 1)) does
    when both are scaled, but those of tokens that nearly never came are off by up to the logarithm of the scale.

    Raises InputError, with the names, for a head that is missing, incomplete or has hidden layers, and for means that
    no run can have counted.
    """
    missing = [name for name in (*HEAD_NAMES, *STATISTICS) if name not in weights]
    if missing:
        raise InputError(f"this is no checkpoint of SuperCLIP's authors: it lacks {listed(missing)}")
    hidden = sorted(name for name in weights if name.startswith("text_decoder.") and name not in HEAD_NAMES)
    if hidden:
        raise InputError(f"its head has hidden layers, ours is one linear map: {listed(hidden)}")
    steps, means = _checked_means(weights["num_samples"], weights["cap_fq"], global_batch)
    ours = {HEAD_NAMES.get(name, name): tensor for name, tensor in weights.items() if name not in STATISTICS}
    ours[NUM_CAPTIONS] = torch.tensor(round(steps * global_batch))
    ours[DOCUMENT_FREQUENCY] = (means * global_batch).round().to(torch.int64)
    return ours


def _checked_means(num_samples: Tensor, cap_fq: Tensor, global_batch: int) -> tuple[float, Tensor]:
    """Returns the number of steps and the running means, float64 [V]; InputError for what no run can have counted."""
    if num_samples.numel() != 1:
        raise InputError(f"num_samples is {list(num_samples.shape)}, expected one number")
    steps, means = num_samples.double().item(), cap_fq.double().flatten()
    if not 0 <= steps * global_batch < MAX_CAPTIONS:
        raise InputError(f"num_samples is {steps:g}; expected the number of the run's steps")
    wrong = ~((means >= 0) & (means <= steps * (1 + FLOAT32)))  # NaN is wrong too
    if wrong.any():
        token = int(wrong.int().argmax())
        raise InputError(f"cap_fq of token {token} is {means[token].item():g}; expected 0 to {steps:g}, num_samples")
    return steps, means


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
        # OpenCLIP's CLIP holds the text tower's parts itself
        weights = {name.removeprefix("text."): tensor for name, tensor in weights.items()}
    architecture, weights = fit(architecture, weights)
    plain = architecture.on_meta()
    check_match(weights, plain.state_dict() | expected_head(plain), str(file), model)
    warnings = _batch_warnings(theirs["cap_fq"], global_batch, out) + vocabulary_warnings(architecture, plain)
    with whole_output(out, overwrite) as folder:
        folder.mkdir()
        write_model(folder, architecture, plain, weights)
    return Import(weights[NUM_CAPTIONS].item(), warnings)


def _batch_warnings(cap_fq: Tensor, global_batch: int, out: Path) -> list[str]:
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
    return [f"--global-batch {global_batch} gives counts that are not whole, {advice}; the import rounds them"]
