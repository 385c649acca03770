"""The models to evaluate: checkpoints, exports and released models."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import open_clip
from clip_benchmark.models import load_clip
from open_clip.constants import HF_CONFIG_NAME
from open_clip.pretrained import download_pretrained_from_hf
from torch import nn

from ..checkpoints.architecture import Architecture, architecture_of, fit, read_architecture
from ..checkpoints.weights import Weights, check_match, file_of_weights, read_checkpoint
from ..errors import InputError
from ..files import content_digest
from .preprocessing import preprocessing
from .result_files import run_of


class EvaluatedModel(NamedTuple):
    """A model to evaluate; its weights are memory-mapped or not even fetched yet."""

    name: str  # RUN/epoch_N, or the user's argument
    argument: str
    # a digest of architecture, preprocessing and file of weights; the commit of hf-hub:REPO
    weights_id: str
    path: Path | None = None  # its file or folder
    epoch: int | None = None
    run: Path | None = None  # the folder of its run
    uses_option: bool = False  # whether --model can name its architecture
    # OpenCLIP's --model and --pretrained, if it is a released model
    openclip: tuple[str, str] = ("", "")
    # otherwise the model without its head
    plain: tuple[Architecture, Weights] | None = None


def find_model(argument: str, model: str | None = None) -> EvaluatedModel:
    """Returns the model of a file, a folder, hf-hub:REPO or MODEL:TAG; InputError if it cannot be
    evaluated.

    `model` is the OpenCLIP model's name, for files and folders that do not contain it.
    """
    path = Path(argument.removeprefix("local-dir:"))
    if path.exists():
        return _local_model(argument, path, model)
    name, _, tag = argument.partition(":")
    if name == "hf-hub" and tag:
        read_architecture(argument, flag="CHECKPOINT")  # InputError if there is no such repository
        commit = Path(download_pretrained_from_hf(tag, filename=HF_CONFIG_NAME)).parent.name
        return EvaluatedModel(argument, argument, commit, openclip=(argument, ""))
    if released := open_clip.get_pretrained_cfg(name, tag):
        # otherwise OpenCLIP computes with another activation than these weights were trained with
        if released.get("quick_gelu") and not open_clip.get_model_config(name).get("quick_gelu"):
            name += "-quickgelu"
        return EvaluatedModel(argument, argument, f"{name}:{tag}", openclip=(name, tag))
    raise InputError(
        f"CHECKPOINT is {argument}: no file or folder, and no MODEL:TAG of "
        "open_clip.list_pretrained()"
    )


def _local_model(argument: str, path: Path, model: str | None) -> EvaluatedModel:
    """Returns the model of a file or folder."""
    is_openclip = (path / HF_CONFIG_NAME).is_file()
    checkpoint = read_checkpoint(path)
    recorded = architecture_of(checkpoint, None if is_openclip else model)
    architecture, weights = fit(recorded, checkpoint.without_head())
    check_match(weights, architecture.build().state_dict(), path, recorded.name)
    inputs = [content_digest(file_of_weights(path)), architecture.model_cfg]
    identity = json.dumps([*inputs, architecture.preprocess_cfg], sort_keys=True)
    run = run_of(path)
    return EvaluatedModel(
        name=f"{run.resolve().name}/{path.stem}" if run else argument,
        argument=argument,
        weights_id=hashlib.sha256(identity.encode()).hexdigest(),
        path=path,
        epoch=checkpoint.epoch,
        run=run,
        uses_option=not is_openclip,
        plain=(architecture, weights),
    )


class OpenedModel(NamedTuple):
    """A model in evaluation mode, as CLIP_benchmark loads it."""

    model: nn.Module
    transform: Callable
    tokenizer: Callable


def open_model(model: EvaluatedModel, device: str) -> OpenedModel:
    """Opens a model: a released one by CLIP_benchmark's loader, others from their weights."""
    if model.plain is None:
        name, tag = model.openclip
        opened, transform, tokenizer = load_clip(
            model_type="open_clip", model_name=name, pretrained=tag, cache_dir=None, device=device
        )
    else:
        architecture, weights = model.plain
        tokenizer = architecture.tokenizer()
        opened = architecture.build("cpu")
        opened.load_state_dict(weights)
        transform = preprocessing(opened)
    return OpenedModel(opened.to(device).eval(), transform, tokenizer)
