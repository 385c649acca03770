"""Averages checkpoints, also released and fine-tuned ones."""

import contextlib
from dataclasses import replace
from pathlib import Path

from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from ..errors import InputError
from ..files import atomic_output, check_out
from ..method.head import NUM_CAPTIONS
from .architecture import architecture_of
from .export import read_source
from .hugging_face import TOWERS
from .starting_weights import released_file
from .trainer_files import options_to_keep
from .weights import (
    Checkpoint,
    check_match,
    check_values,
    read_checkpoint,
    save_weights,
)

COMMAND = "superclip average"  # which the output contains
COMPUTE = {  # fields that change what a tower computes, but no tensor's name or shape
    "vision_cfg": (
        "head_width",
        "pool_type",
        "final_ln_after_pool",
        "attn_pooler_heads",
        "act_kwargs",
        "timm_pool",
    ),
    "text_cfg": ("heads", "pool_type", "no_causal_mask", "eos_id", "act_kwargs", "hf_pooler_type"),
}


def average(sources: list[str], shares: list[float], out: Path, *, overwrite: bool) -> None:
    """Writes the mean of the checkpoints' weights, computed in float64 and cast to the original
    types.

    `sources` are files, folders or OpenCLIP's MODEL:TAG, and `shares` their weights, [] for equal
    ones. With two sources, this is WiSE-FT (arXiv 2109.01903). Integers are not averaged, but
    copied from the checkpoint that has seen most captions, or from the last one, and so are the
    options of its run. A class head is the mean of the checkpoints that have one.
    """
    check_out(out, sources, COMMAND, overwrite=overwrite)
    checkpoints = [_read(source) for source in sources]
    with_head = [checkpoint for checkpoint in checkpoints if checkpoint.has_head] or checkpoints
    for checkpoint in checkpoints:
        check_values(checkpoint.weights, checkpoint.path)
        _check_fit(checkpoint, with_head[0])
    latest = max(reversed(with_head), key=lambda one: int(one.weights.get(NUM_CAPTIONS, 0)))
    shares = shares or [1.0] * len(checkpoints)
    merged = dict(latest.weights)
    for name, tensor in merged.items():
        parts = [
            (share, checkpoint.weights[name].double())
            for share, checkpoint in zip(shares, checkpoints, strict=True)
            if share and name in checkpoint.weights
        ]
        if tensor.is_floating_point() and parts:  # none of a head whose checkpoints do not count
            mean = sum(share * part for share, part in parts) / sum(share for share, _ in parts)
            merged[name] = mean.to(tensor.dtype)
    with atomic_output(out, overwrite=overwrite) as file:
        save_weights(merged, file, {**options_to_keep(latest), "written_by": COMMAND})


def _read(source: str) -> Checkpoint:
    """Returns the checkpoint in a file or folder, or the one of MODEL:TAG with the options that its
    tag stands for."""
    file = released_file(source, "CHECKPOINT")
    if file == source:
        return read_checkpoint(file)
    model, tag = source.split(":", 1)
    checkpoint = read_source(file, model, tag=tag)
    return replace(checkpoint, options={"model": model, **checkpoint.options})


def _check_fit(left: Checkpoint, right: Checkpoint) -> None:
    """Raises InputError unless two checkpoints are of one model; `left` may lack a class head."""
    expected = right.weights if left.has_head else right.without_head()
    check_match(left.weights, expected, left.path, right.path)
    others = _facts(right)
    for name, fact in _facts(left).items():
        if fact != others.get(name, fact):
            raise InputError(
                f"{left.path} does not match {right.path}: its {name} is {fact}, expected "
                f"{others[name]}"
            )


def _facts(checkpoint: Checkpoint) -> dict:
    """Returns what the names and shapes of weights do not show, nothing if the model is
    unknown."""
    facts = {}
    with contextlib.suppress(InputError):
        architecture = architecture_of(checkpoint)
        preprocessing = merge_preprocess_dict(PreprocessCfg(), architecture.preprocess_cfg)
        facts["quick_gelu"] = architecture.model_cfg.get("quick_gelu", False)
        for tower, names in COMPUTE.items():
            values = {**vars(TOWERS[tower]()), **architecture.model_cfg[tower]}
            facts |= {f"{tower} {name}": values[name] for name in names}
        for name in ("mean", "std", "interpolation", "resize_mode"):
            value = preprocessing[name]
            facts[f"image {name}"] = list(value) if isinstance(value, tuple) else value
    return facts
