"""The models to evaluate: checkpoints, exports and released models, opened as CLIP_benchmark opens OpenCLIP's."""

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch
from clip_benchmark.models import load_clip
from open_clip.constants import HF_CONFIG_NAME
from open_clip.factory import parse_model_name
from torch import Tensor, nn

from ..checkpoints.architecture import Architecture, architecture_of, fit
from ..checkpoints.averaging import interpolate
from ..checkpoints.checkpoint import Checkpoint, check_match, read_checkpoint
from ..checkpoints.export import write_model
from ..checkpoints.pretrained import released_file
from ..checkpoints.run_outputs import checkpoints, run_behind
from ..errors import InputError

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx")


Plain = tuple[Architecture, dict[str, Tensor]]  # a model without a head, and its weights


class Evaluated(NamedTuple):
    """A model to evaluate; its weights are mapped or not even fetched yet."""

    name: str  # RUN/epoch_N, or the user's argument
    given: str
    weights_id: str  # a digest of architecture, preprocessing and weights
    tokenizer_id: str = ""  # a digest of its files, if they are local
    place: Path | None = None  # its file or folder
    epoch: int | None = None
    run: Path | None = None  # the folder of its run
    openclip: tuple[str, str] = ("", "")  # OpenCLIP's --model and --pretrained, if OpenCLIP opens it unchanged
    plain: Callable[[], Plain] | None = None  # otherwise, a function that creates the model

    def source_from(self, folder: Path) -> str:
        """Returns its path relative to a folder of results, so that both can be moved together."""
        return os.path.relpath(self.place, folder.resolve()) if self.place else self.given


def find_models(given: list[str], model: str | None = None) -> list[Evaluated]:
    """Returns the models that the user named; InputError if one cannot be evaluated, before any is loaded.

    Args:
        given: files, folders, hf-hub:REPO or MODEL:TAG of OpenCLIP's.
        model: the OpenCLIP model's name, for files and folders that do not contain it.
    """
    if model and all(map(_says_its_model, given)):
        raise InputError(f"--model is {model}, but {', '.join(given)} says what model it is: leave --model out")
    return [_find(one, model) for one in dict.fromkeys(given)]


def checkpoints_of(run: str) -> list[str]:
    """Returns the checkpoints of a run's epochs, in order; InputError if it has none."""
    found = checkpoints(Path(run, "checkpoints"))
    if not found:
        raise InputError(f"--every: {run} holds no checkpoints/epoch_N.pt; expected the folder of a run")
    return [*map(str, found.values())]


def interpolated_models(tuned: str, released: str, alphas: list[float], model: str | None = None) -> list[Evaluated]:
    """Returns (1 - α) · released + α · tuned for every α, computed lazily; InputError if the weights do not match.

    Args:
        tuned: a file or a folder.
        released: a file, a folder or MODEL:TAG of OpenCLIP's.
        model: as in `find_models`.
    """
    (end,) = find_models([tuned], model)
    if end.place is None:
        raise InputError(f"--wise-ft: CHECKPOINT is {tuned}; expected the file or folder of what was tuned")
    start = read_checkpoint(released_file(released, "--wise-ft"))
    last = read_checkpoint(end.place)
    check_match(start.without_head(), last.without_head(), str(start.path), str(last.path))
    architecture = architecture_of(end.place, run_behind(last).options, model if _needs_model(end.place) else None)
    identity = _weights_id(architecture, start.without_head())

    def mixed(alpha: float) -> Plain:
        whole = Checkpoint(last.path, interpolate(start, last, alpha), last.epoch)
        return fit(architecture, whole.without_head())

    return [
        Evaluated(
            f"{end.name} α {alpha:g}", tuned, f"{alpha} {identity} {end.weights_id}", end.tokenizer_id, end.place,
            run=end.run, plain=functools.partial(mixed, alpha),
        )
        for alpha in alphas
    ]  # fmt: skip


def open_model(model: Evaluated, device: str) -> tuple[nn.Module, Callable, Callable]:
    """Returns (model, transform, tokenizer) from CLIP_benchmark's loader, which opens our weights as an export."""
    with tempfile.TemporaryDirectory(prefix="superclip-evaluate-") as folder:
        name, tag = model.openclip
        if model.plain is not None:
            architecture, weights = model.plain()
            write_model(Path(folder), architecture, architecture.on_meta(), weights)
            name = f"local-dir:{folder}"
        opened, transform, tokenizer = load_clip(
            model_type="open_clip", model_name=name, pretrained=tag, cache_dir=None, device=device
        )
    return opened.eval(), transform, tokenizer


def _find(given: str, model: str | None) -> Evaluated:
    path = Path(given.removeprefix("local-dir:"))
    if path.exists():
        return _of_path(path, given, model if _needs_model(path) else None)
    name, _, tag = given.partition(":")
    if name == "hf-hub" and tag:
        return Evaluated(given, given, _hub_id(tag), openclip=(given, ""))
    if open_clip.get_pretrained_cfg(name, tag):
        return Evaluated(given, given, given, openclip=(name, tag))
    raise InputError(f"CHECKPOINT is {given}: no file or folder, and no MODEL:TAG of open_clip.list_pretrained()")


def _says_its_model(given: str) -> bool:
    path = Path(given.removeprefix("local-dir:"))
    return not _needs_model(path) if path.exists() else ":" in given


def _needs_model(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and not (path / HF_CONFIG_NAME).is_file())


def _of_path(path: Path, given: str, model: str | None) -> Evaluated:
    if (path / "config.json").is_file() and not (path / HF_CONFIG_NAME).is_file():
        raise InputError(f"CHECKPOINT: {path} is for transformers; export its checkpoint without --format hf")
    if (path / "checkpoints").is_dir():
        raise InputError(f"CHECKPOINT is {given}, the folder of a run: give {given}/checkpoints/epoch_N.pt, or --every")
    checkpoint = read_checkpoint(path)
    found = architecture_of(path, run_behind(checkpoint).options, model)
    architecture, weights = fit(found, checkpoint.without_head())
    check_match(weights, architecture.on_meta().state_dict(), str(path), found.name)
    run = path.parent.parent if path.parent.name == "checkpoints" else None
    name = f"{run.resolve().name}/{path.stem}" if run else given
    identities = _weights_id(architecture, weights), _tokenizer_id(architecture)
    evaluated = Evaluated(name, given, *identities, path.resolve(), checkpoint.epoch, run)
    if (path / HF_CONFIG_NAME).is_file() and (checkpoint.head_beside or not checkpoint.head()):
        return evaluated._replace(openclip=(f"local-dir:{path}", ""))
    return evaluated._replace(plain=lambda: (architecture, weights))


def _weights_id(architecture: Architecture, weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps([architecture.model_cfg, architecture.preprocess_cfg], sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _tokenizer_id(architecture: Architecture) -> str:
    """Returns a digest of the tokenizer's local files; "" if they are OpenCLIP's or the hub's."""
    schema, place = parse_model_name(architecture.name)
    text_cfg = architecture.model_cfg.get("text_cfg", {})
    vocabulary = text_cfg.get("tokenizer_kwargs", {}).get("bpe_path")
    files = [Path(vocabulary)] if vocabulary else []
    if text_cfg.get("hf_tokenizer_name"):
        folder = Path(place if schema == "local-dir" else text_cfg["hf_tokenizer_name"])
        files += sorted(file for file in folder.glob("*") if file.is_file() and file.suffix not in WEIGHTS)
    digest = hashlib.sha256()
    for file in files:
        if not file.is_file():
            raise InputError(f"CHECKPOINT: {architecture.name} has its vocabulary in {file}, which is not there")
        digest.update(f"{file.name} {file.stat().st_size} ".encode() + file.read_bytes())
    return digest.hexdigest() if files else ""


def _hub_id(repo: str) -> str:
    """Returns the commit of a repository of the hub, or its name if neither the hub nor a cache has it."""
    try:
        config = open_clip.pretrained.download_pretrained_from_hf(repo, filename=HF_CONFIG_NAME)
    except Exception:  # the hub's client can raise any exception; opening the model reports it
        return repo
    return f"{repo}@{Path(config).parent.name}"  # snapshots/COMMIT/open_clip_config.json
