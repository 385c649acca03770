"""Opens a checkpoint to use it, with its class head if it has one."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from ..checkpoints.architecture import architecture_of, fit
from ..checkpoints.weights import (
    Checkpoint,
    check_match,
    check_values,
    checkpoint_of,
    fixed_idf,
    read_checkpoint,
)
from ..environment import check_device
from ..errors import InputError
from ..evaluation.preprocessing import preprocessing
from ..method.head import head_input_of
from ..method.idf import special_token_ids
from ..trainer.hook_calls import plugins_model_class

NO_HEAD = "train with --superclip, and export with --with-head"


class OpenedCheckpoint(NamedTuple):
    """A model in evaluation mode, with its class head if it has one."""

    model: nn.Module
    tokenizer: Callable
    token_weights: Tensor | None  # [V], IDF weight of each token; None without a head

    def preprocess(self) -> Callable:
        """Returns the transform from a PIL image to the model's input."""
        return preprocessing(self.model)


def read_model(path: Path) -> Checkpoint:
    """Returns the checkpoint of --model, the latest one if it is a run's folder.

    Raises InputError if there is none."""
    try:
        return read_checkpoint(checkpoint_of(path))
    except InputError as error:
        raise InputError(f"--model: {error}") from error


def open_with_head(
    path: Path, architecture: str | None = None, device: str | None = None
) -> OpenedCheckpoint:
    """Opens the model in a file or folder with `open_checkpoint`.

    Raises InputError if it has no class head."""
    device = check_device(device)
    checkpoint = read_model(path)
    if not checkpoint.has_head:
        raise InputError(f"--model: {path} has no class head, which predicts words: {NO_HEAD}")
    return open_checkpoint(checkpoint, architecture, device)


def open_checkpoint(
    checkpoint: Checkpoint, architecture: str | None = None, device: str = "cpu"
) -> OpenedCheckpoint:
    """Returns the model of a checkpoint, with its class head if it has one. Raises InputError if it
    cannot be built.

    `architecture` is the name of the OpenCLIP model, if it is not recorded with the weights.
    """
    path = checkpoint.path
    options = checkpoint.options
    recorded = architecture_of(checkpoint, architecture, flag="--architecture")
    fitted, weights = fit(recorded, checkpoint.weights)
    tokenizer = recorded.tokenizer()
    head_options = {}
    if checkpoint.has_head:
        counts_of_file = fixed_idf(checkpoint, tokenizer)  # in the order of `frequencies`
        weights = weights | counts_of_file
        counts_special = options.get("superclip_special_tokens")
        head_options["superclip"] = {
            "ignored_tokens": () if counts_special else special_token_ids(tokenizer),
            "head_input": head_input_of(weights),
            "frequencies": tuple(counts_of_file.values()) or None,
        }
    with plugins_model_class():
        model = fitted.build("cpu", **head_options)
    check_match(weights, model.state_dict(), path, recorded.name)
    check_values(weights, f"--model: {path}")
    model.load_state_dict(weights)
    token_weights = _token_weights(model, options) if head_options else None
    model = model.eval().requires_grad_(requires_grad=False).to(device)
    return OpenedCheckpoint(model, tokenizer, token_weights)


def _token_weights(model: nn.Module, options: dict) -> Tensor:
    """Returns the IDF weights of a run's training, [V]."""
    if model.fixed_idf is not None:
        return model.fixed_idf()
    is_unweighted = options.get("superclip_idf") == "off" or not model.statistics.num_captions
    return model.statistics.counted.float() if is_unweighted else model.statistics.idf()
