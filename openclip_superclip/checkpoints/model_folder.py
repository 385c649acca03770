"""Folders that OpenCLIP opens as local-dir: configuration, weights and tokenizer."""

import copy
from pathlib import Path

from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME
from open_clip.push_to_hf_hub import save_config_for_hf
from torch import Tensor, nn

from ..atomic_files import NotWritten
from ..errors import InputError
from .architecture import Architecture
from .bpe_tokenizer import as_hugging_face
from .weights_writer import save_weights


def write_model(
    folder: Path,
    architecture: Architecture,
    model: nn.Module,
    weights: dict[str, Tensor],
    weights_name: str = HF_SAFE_WEIGHTS_NAME,
    repo: str | None = None,
) -> None:
    """Writes configuration, weights and tokenizer so that OpenCLIP opens `folder` as local-dir, wherever it is moved.

    Args:
        model: `architecture.on_meta()`; it knows the preprocessing.
        weights_name: OpenCLIP's name of the weights' file; its suffix tells the format.
        repo: of the hub, where the folder will be; OpenCLIP looks there for the tokenizer.
    """
    model_cfg = copy.deepcopy(architecture.model_cfg)
    text_cfg = model_cfg["text_cfg"]
    tower = text_cfg.get("hf_model_name")
    if repo and tower and Path(tower).exists():
        raise InputError(
            f"--push: {architecture.name} has its text tower's configuration in {tower}, which is on this machine "
            "alone: text_cfg must name a model of the hub as hf_model_name"
        )
    if text_cfg.get("hf_tokenizer_name"):
        save_files(architecture.tokenizer().tokenizer, folder)
        text_cfg["hf_tokenizer_name"] = repo or text_cfg["hf_tokenizer_name"]
    elif text_cfg.get("tokenizer_kwargs", {}).get("bpe_path"):
        _write_vocabulary(folder, architecture, text_cfg, repo)
    save_config_for_hf(model, folder / HF_CONFIG_NAME, model_cfg)
    save_weights(weights, folder / weights_name)


def save_files(tokenizer, folder: Path) -> None:
    """Writes a tokenizer or processor of transformers'; OSError where the disk does not take it."""
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise NotWritten(str(error)) from error  # the tokenizers' library says no more than this


def _write_vocabulary(folder: Path, architecture: Architecture, text_cfg: dict, repo: str | None) -> None:
    """Writes the tokenizer of a vocabulary of one's own, and has the configuration open it from the folder."""
    kwargs = dict(text_cfg["tokenizer_kwargs"])
    del kwargs["bpe_path"]
    clean = kwargs.pop("clean", "lower")
    if kwargs:
        raise InputError(
            f"--model: {architecture.name} has a vocabulary of its own, with {', '.join(kwargs)} in tokenizer_kwargs, "
            "which no folder can carry: bpe_path and clean alone can be exported"
        )
    save_files(as_hugging_face(architecture.tokenizer()), folder)
    text_cfg["hf_tokenizer_name"] = repo or "in-this-folder"
    text_cfg["tokenizer_kwargs"] = {"clean": clean, "strip_sep_token": True}
