"""Checks and loads the weights that a run starts from, with their class head if they contain
one."""

import functools
import logging
import os
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.factory import _find_checkpoint_in_dir, parse_model_name
from open_clip.pretrained import download_pretrained_from_hf
from torch import Tensor

from ..checkpoints import HEAD_NAME, WEIGHTS_NAMES
from ..errors import InputError, reason
from ..method.head import FRESH_HEAD
from .model_configurations import read_configuration
from .weights import check_values, is_torchscript, read_checkpoint, read_head


def released_file(released: str, flag: str, cache_dir: str | None = None) -> str:
    """Returns the file of MODEL:TAG, which OpenCLIP downloads if it is not cached. Returns an
    existing path unchanged.

    Raises InputError if OpenCLIP has no such weights or cannot download them.
    """
    if Path(released).exists():
        return released
    cfg = open_clip.get_pretrained_cfg(*released.split(":", 1)) if ":" in released else None
    if not cfg:
        raise InputError(
            f"{flag} is {released}: no file, and no MODEL:TAG of open_clip.list_pretrained()"
        )
    try:
        return open_clip.download_pretrained(cfg, cache_dir=cache_dir)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{flag} is {released}, which cannot be downloaded or read ({reason(error)})"
        ) from error


def stored_head(
    model: str, pretrained: str | None, cache_dir: str | None = None
) -> dict[str, Tensor] | None:
    """Returns the class head and token statistics saved next to the weights of a model, or None
    if there are none."""
    schema, location = parse_model_name(model)
    # --pretrained takes precedence over the weights in a folder
    if pretrained and Path(pretrained).is_file():
        exported = Path(pretrained).name in WEIGHTS_NAMES
        file = Path(pretrained).with_name(HEAD_NAME) if exported else None
    elif schema == "hf-hub":
        try:
            file = Path(
                download_pretrained_from_hf(location, filename=HEAD_NAME, cache_dir=cache_dir)
            )
        except FileNotFoundError:  # the repository has none
            return None
    else:
        file = Path(location, HEAD_NAME) if schema == "local-dir" else None
    return read_head(file)[0] if file and file.is_file() else None


def check_pretrained(model: str, pretrained: str | None) -> None:
    """Raises InputError for a pretrained tag with local-dir: or hf-hub:, for which OpenCLIP
    ignores --pretrained."""
    if parse_model_name(model)[0] and pretrained and not os.path.isfile(pretrained):
        raise InputError(
            f"--pretrained {pretrained} cannot be used with --model {model}: give a file, or "
            "leave it out"
        )


def start_of_towers(
    model: str, pretrained: str | None, cache_dir: str | None = None, *, pretrained_image: bool
) -> str:
    """Returns where OpenCLIP takes the weights of the image tower and of the text tower from.

    Raises InputError if it would ignore --pretrained-image, or that a configuration asks for timm's
    weights.
    """
    if whole := _whole_weights(model, pretrained, cache_dir):
        return whole
    model_cfg, _ = read_configuration(model, cache_dir=cache_dir)
    vision, timm_name = model_cfg["vision_cfg"], model_cfg["vision_cfg"].get("timm_model_name")
    if pretrained_image and not timm_name:
        raise InputError(
            f"--pretrained-image has no effect: the image tower of {model} is not one of "
            "timm's; leave it out"
        )
    if timm_name and vision.get("timm_model_pretrained") and not pretrained_image:
        raise InputError(
            f"--model: {model} contains timm_model_pretrained: true, which OpenCLIP ignores: "
            "add --pretrained-image to start from timm's weights, or set it to false"
        )
    image = f"timm's {timm_name}" if pretrained_image else "random weights"
    text = model_cfg["text_cfg"].get("hf_model_name") or "random weights"
    return f"{image} (image) and {text} (text)"


def _whole_weights(model: str, pretrained: str | None, cache_dir: str | None) -> str | None:
    """Returns the file, tag, folder or repository with the weights of the whole model, or None."""
    schema, location = parse_model_name(model)
    if pretrained:
        return pretrained
    if schema == "local-dir":
        return _find_checkpoint_in_dir(Path(location))
    if schema is None:
        return None
    try:
        download_pretrained_from_hf(location, cache_dir=cache_dir)
    except FileNotFoundError:
        return None
    return model


def check_weights(model: str, pretrained: str | None) -> None:
    """Raises InputError if the file that a run starts from cannot be read or contains NaN or
    infinity."""
    schema, location = parse_model_name(model)
    file = (
        _find_checkpoint_in_dir(Path(location))
        if schema == "local-dir" and not pretrained
        else pretrained
    )
    if not file or not os.path.isfile(file):
        return
    flag = "--pretrained" if pretrained else "--model"
    try:
        if file.endswith(".npz"):  # of big_vision
            with np.load(file) as arrays:
                floats = {name: array for name, array in arrays.items() if array.dtype.kind == "f"}
            weights = {name: torch.from_numpy(array) for name, array in floats.items()}
        else:
            weights = read_checkpoint(file).weights
        check_values(weights, file)
    except InputError as error:
        raise InputError(f"{flag}: {error}") from error
    except Exception as error:  # corrupt files can raise anything
        raise InputError(f"{flag}: {file} cannot be read ({reason(error)})") from error


def how_to_load(model: str, pretrained: str | None) -> tuple[dict, functools.partial | None]:
    """Returns how to load --pretrained.

    Raises InputError as `check_pretrained` does.

    Returns:
        Arguments for OpenCLIP's factory, and a function that loads the file into the model if
        OpenCLIP would ignore --pretrained, else None.
    """
    check_pretrained(model, pretrained)
    if not pretrained or not os.path.isfile(pretrained):
        return {}, None
    if pretrained.endswith(".npz"):
        # otherwise logged by load_state_dict, which OpenCLIP does not call for .npz
        logging.info(FRESH_HEAD)
    # torch.load rejects TorchScript archives with weights_only=True. It reads them without Python's
    # unpickler.
    options = {"weights_only": False} if is_torchscript(pretrained) else {}
    if not parse_model_name(model)[0]:
        return options, None
    load = functools.partial(_load, file=pretrained, options=options)
    return {"load_weights": False, "pretrained_text": False}, load


def _load(model, *, file: str, options: dict) -> None:
    logging.info(f"SuperCLIP: the model starts from {file}, which OpenCLIP would have ignored")
    open_clip.load_checkpoint(model, file, **options)


def starts_with_head(model: str | None, pretrained: str | None) -> bool:
    """Returns whether the weights of --pretrained, or of a local-dir: model, contain a class
    head."""
    schema, location = parse_model_name(model) if model else (None, None)
    source = location if schema == "local-dir" else pretrained
    if not source or not os.path.exists(source) or source.endswith(".npz"):
        return False
    try:
        return not is_torchscript(source) and bool(read_checkpoint(source, checksums=False).head())
    except InputError:  # OpenCLIP reports the error
        return False
