"""What is evaluated: a checkpoint, an export or a released model, opened as CLIP_benchmark opens OpenCLIP's."""

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch
from clip_benchmark.models import load_clip
from open_clip.constants import HF_CONFIG_NAME
from torch import Tensor, nn

from ..checkpoints.architecture import Architecture, architecture_of, fit
from ..checkpoints.checkpoint import check_match, read_checkpoint
from ..checkpoints.model_folder import write_model
from ..checkpoints.run_options import read_run_record
from ..errors import InputError


class Evaluated(NamedTuple):
    """A model to evaluate; its weights are mapped or not even fetched yet."""

    name: str  # RUN/epoch_N, or as the user gave it
    given: str
    weights_id: str  # equal where architecture, preprocessing and weights are
    epoch: int | None = None
    run: Path | None = None  # the folder of the run that wrote it
    openclip: tuple[str, str] = ("", "")  # OpenCLIP's --model and --pretrained, where OpenCLIP opens it as it is
    plain: tuple[Architecture, nn.Module, dict[str, Tensor]] | None = None  # what becomes a folder that it opens


def find_models(given: list[str], model: str | None = None) -> list[Evaluated]:
    """Returns what the user named; InputError for what cannot be evaluated, before any is loaded.

    Args:
        given: files, folders, hf-hub:REPO or MODEL:TAG of OpenCLIP's.
        model: the OpenCLIP model's name, for files; a folder knows its own.
    """
    found = [_find(one, model) for one in dict.fromkeys(given)]
    names = [one.name for one in found]
    return [one._replace(name=one.given) if names.count(one.name) > 1 else one for one in found]


def open_model(model: Evaluated, device: str) -> tuple[nn.Module, Callable, Callable]:
    """Returns (model, transform, tokenizer) out of CLIP_benchmark's own loader; weights of ours as `superclip export`
    writes them."""
    with tempfile.TemporaryDirectory(prefix="superclip-evaluate-") as folder:
        name, tag = model.openclip
        if model.plain is not None:
            architecture, on_meta, weights = model.plain
            write_model(Path(folder), architecture, on_meta, weights, place=Path(folder))
            name = f"local-dir:{folder}"
        opened, transform, tokenizer = load_clip(
            model_type="open_clip", model_name=name, pretrained=tag, cache_dir=None, device=device
        )
    return opened.eval(), transform, tokenizer


def _find(given: str, model: str | None) -> Evaluated:
    path = Path(given.removeprefix("local-dir:"))
    if path.exists():
        return _of_path(path, given, model if path.is_file() else None)
    name, _, tag = given.partition(":")
    if name == "hf-hub" and tag:
        return Evaluated(given, given, given, openclip=(given, ""))
    if open_clip.get_pretrained_cfg(name, tag):
        return Evaluated(given, given, given, openclip=(name, tag))
    raise InputError(f"CHECKPOINT is {given}: no file or folder, and no MODEL:TAG of open_clip.list_pretrained()")


def _of_path(path: Path, given: str, model: str | None) -> Evaluated:
    if (path / "config.json").is_file() and not (path / HF_CONFIG_NAME).is_file():
        raise InputError(f"CHECKPOINT: {path} is for transformers; export its checkpoint without --format hf")
    checkpoint = read_checkpoint(path)
    found = architecture_of(path, read_run_record(path, checkpoint.epoch).options, model)
    architecture, weights = fit(found, checkpoint.without_head())
    on_meta = architecture.on_meta()
    check_match(weights, on_meta.state_dict(), str(path), found.name)
    run = path.parent.parent if path.parent.name == "checkpoints" else None
    name = f"{run.resolve().name}/{path.stem}" if run else given
    evaluated = Evaluated(name, given, _weights_id(architecture, weights), checkpoint.epoch, run)
    if path.is_dir() and not checkpoint.head():
        return evaluated._replace(openclip=(f"local-dir:{path}", ""))
    return evaluated._replace(plain=(architecture, on_meta, weights))


def _weights_id(architecture: Architecture, weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps([architecture.model_cfg, architecture.preprocess_cfg], sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
