"""Opens a model for evaluation, with its class head: an export, a training checkpoint, or an import's folder."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from open_clip.constants import HF_CONFIG_NAME
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor, nn

from ..checkpoints.architecture import architecture_of, fit
from ..checkpoints.checkpoint import Checkpoint, read_checkpoint
from ..checkpoints.run_options import run_behind
from ..checkpoints.weights_check import check_match, check_values
from ..errors import InputError
from ..integration.unpatched_openclip import plugins_model_class
from ..method.token_statistics import special_token_ids
from ..torch_device import check_device


class Opened(NamedTuple):
    """A model for evaluation, with its class head if it has one."""

    model: nn.Module
    tokenizer: Callable
    preprocess_cfg: PreprocessCfg
    token_weights: Tensor | None  # [V], what each token weighed as a label: its IDF; None without a head

    def preprocess(self) -> Callable:
        """Returns what makes a picture the model's input."""
        return image_transform_v2(self.preprocess_cfg, is_train=False)


def open_with_head(path: Path, architecture: str | None = None, device: str = "cpu") -> Opened:
    """Returns the model in a file or folder; InputError where that holds no class head.

    Args:
        architecture: the OpenCLIP model's name, where nothing beside the weights says it.
    """
    check_device(device)
    checkpoint = read_model(path)
    if not checkpoint.head():
        raise InputError(f"--model: {path} holds no class head, which is what sees words: {without_head(path)}")
    return open_checkpoint(checkpoint, architecture, device)


def open_checkpoint(checkpoint: Checkpoint, architecture: str | None = None, device: str = "cpu") -> Opened:
    """Returns the model of a checkpoint, with its class head if it has one; InputError where it cannot be built.

    Args:
        architecture: the OpenCLIP model's name, where nothing beside the weights says it.
    """
    logging.getLogger().setLevel(logging.ERROR)  # OpenCLIP warns of a model without weights: they come below
    path, record = checkpoint.path, run_behind(checkpoint)
    found = architecture_of(path, record.options, architecture, flag="--architecture")
    fitted, weights = fit(found, checkpoint.weights)
    tokenizer = found.tokenizer()
    if checkpoint.head():
        with plugins_model_class():
            model = fitted.on("cpu", superclip={"ignored_tokens": special_token_ids(tokenizer)})
    else:
        model = fitted.on("cpu")
    check_match(weights, model.state_dict(), str(path), found.name)
    check_values(weights, f"--model: {path}")
    model.load_state_dict(weights)
    token_weights = _token_weights(model, record.options) if checkpoint.head() else None
    preprocess_cfg = PreprocessCfg(**model.visual.preprocess_cfg)
    return Opened(model.eval().requires_grad_(False).to(device), tokenizer, preprocess_cfg, token_weights)


def _token_weights(model: nn.Module, options: dict) -> Tensor:
    counts = model.statistics
    equal = options.get("superclip_idf") == "off" or not counts.num_captions
    return counts.counted.float() if equal else counts.idf()


def read_model(path: Path) -> Checkpoint:
    """Returns what the file or folder of --model holds; InputError where that is no model of OpenCLIP's."""
    if not path.exists():
        raise InputError(f"--model: there is no file or folder {path}")
    if path.is_dir() and (path / "config.json").is_file() and not (path / HF_CONFIG_NAME).is_file():
        raise InputError(f"--model: {path} is for transformers; export the checkpoint with --with-head alone")
    try:
        return read_checkpoint(path)
    except InputError as error:
        raise InputError(f"--model: {error}") from error


def without_head(path: Path) -> str:
    """Returns what to do about a model that holds no class head."""
    return "export its checkpoint with --with-head" if path.is_dir() else "it is of a run without --superclip"
