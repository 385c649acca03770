"""Folders that OpenCLIP opens as local-dir: configuration, weights and tokenizer."""

import copy
import shutil
from pathlib import Path

import open_clip
from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME
from open_clip.push_to_hf_hub import save_config_for_hf
from torch import Tensor, nn

from .architecture import Architecture
from .weights_file import save_weights


def write_model(
    folder: Path,
    architecture: Architecture,
    model: nn.Module,
    weights: dict[str, Tensor],
    place: Path,
    weights_name: str = HF_SAFE_WEIGHTS_NAME,
) -> None:
    """Writes configuration, weights and tokenizer so that OpenCLIP opens `folder` as local-dir.

    Args:
        model: `architecture.on_meta()`; it knows the preprocessing.
        place: where the folder will be once it is whole: OpenCLIP wants a vocabulary's path.
        weights_name: OpenCLIP's name of the weights' file; its suffix tells the format.
    """
    model_cfg = copy.deepcopy(architecture.model_cfg)
    text_cfg = model_cfg["text_cfg"]
    if text_cfg.get("hf_tokenizer_name"):
        open_clip.get_tokenizer(architecture.name).save_pretrained(folder)
    vocabulary = text_cfg.get("tokenizer_kwargs", {}).get("bpe_path")
    if vocabulary:
        copied = Path(shutil.copy(vocabulary, folder))
        text_cfg["tokenizer_kwargs"]["bpe_path"] = str((place / copied.name).resolve())
    save_config_for_hf(model, folder / HF_CONFIG_NAME, model_cfg)
    save_weights(weights, folder / weights_name)
