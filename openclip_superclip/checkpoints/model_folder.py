"""Folders that OpenCLIP opens as local-dir: configuration, weights and tokenizer, written whole or not at all."""

import contextlib
import copy
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch
from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME
from open_clip.factory import parse_model_name
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.push_to_hf_hub import save_config_for_hf
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import InputError


class Architecture(NamedTuple):
    """A model without its weights."""

    name: str  # as --model says it; OpenCLIP finds the tokenizer under it
    model_cfg: dict
    preprocess_cfg: dict

    def on_meta(self, **model_kwargs) -> nn.Module:
        """Returns OpenCLIP's model with shapes and no memory; where the plugin's hooks hold, with `superclip=…`."""
        return self.on("meta", **model_kwargs)

    def on(self, device: str, **model_kwargs) -> nn.Module:
        """Returns OpenCLIP's model without its weights."""
        with tempfile.TemporaryDirectory() as folder, torch.device(device):
            config = {"model_cfg": self.model_cfg, "preprocess_cfg": self.preprocess_cfg}
            Path(folder, HF_CONFIG_NAME).write_text(json.dumps(config))
            return open_clip.create_model(
                f"local-dir:{folder}", load_weights=False, pretrained_text=False, device=device, **model_kwargs
            )

    def with_options(self, options: dict) -> "Architecture":
        """Returns it as OpenCLIP's trainer would change it for `options` of the command line, by their names."""
        model_cfg, preprocess_cfg = copy.deepcopy(self.model_cfg), dict(self.preprocess_cfg)
        if options.get("force_quick_gelu"):
            model_cfg["quick_gelu"] = True
        size = options.get("force_image_size")
        if size is not None:
            model_cfg["vision_cfg"]["image_size"] = size[0] if isinstance(size, list) and len(size) == 1 else size
        if options.get("force_context_length") is not None:
            model_cfg["text_cfg"]["context_length"] = options["force_context_length"]
        for name in ("mean", "std", "interpolation", "resize_mode"):
            if options.get(f"image_{name}") is not None:
                preprocess_cfg[name] = options[f"image_{name}"]
        return self._replace(model_cfg=model_cfg, preprocess_cfg=preprocess_cfg)


def read_architecture(model: str, tag: str = "") -> Architecture:
    """Returns what a --model names: a built-in name, local-dir:, hf-hub:, or a JSON file of a configuration.

    With the tag of released weights the preprocessing is theirs. Raises InputError for a model that there is not.
    """
    if model.endswith(".json") and Path(model).name != HF_CONFIG_NAME:
        if not Path(model).is_file():
            raise InputError(f"--model: there is no file {model}")
        open_clip.add_model_config(model)
        model = Path(model).stem
    elif model.endswith(HF_CONFIG_NAME):
        model = f"local-dir:{Path(model).parent}"
    try:
        model_cfg = open_clip.get_model_config(model)
    except (OSError, ValueError) as error:
        raise InputError(f"--model: {model} has no readable configuration ({' '.join(str(error).split())})") from error
    if model_cfg is None:
        raise InputError(
            f"--model: OpenCLIP knows no '{model}'; expected one of open_clip.list_models(), local-dir:FOLDER, "
            "hf-hub:REPO or a JSON file with embed_dim, vision_cfg and text_cfg"
        )
    return Architecture(model, copy.deepcopy(model_cfg), _preprocess_cfg(model, tag))


def _preprocess_cfg(model: str, tag: str) -> dict:
    schema, place = parse_model_name(model)
    if schema == "local-dir":
        return json.loads(Path(place, HF_CONFIG_NAME).read_text()).get("preprocess_cfg", {})
    if schema == "hf-hub":
        file = open_clip.pretrained.download_pretrained_from_hf(place, filename=HF_CONFIG_NAME)
        return json.loads(Path(file).read_text()).get("preprocess_cfg", {})
    released = open_clip.get_pretrained_cfg(model, tag) if tag else {}
    names = open_clip.transform.PreprocessCfg.__dataclass_fields__
    return {name: value for name, value in released.items() if name in names}


def fit(architecture: Architecture, weights: dict[str, Tensor]) -> tuple[Architecture, dict[str, Tensor]]:
    """Returns both with what OpenCLIP lets differ made equal: the text tower's place, the scale's and bias's shapes."""
    model_cfg = copy.deepcopy(architecture.model_cfg)
    if "multimodal_cfg" not in model_cfg:
        model_cfg["vision_cfg"].pop("output_tokens", None)  # stock CLIP cannot take them, and the head does not
    separate_text = any(name.startswith("text.") for name in weights)
    if separate_text:
        model_cfg["custom_text"] = True
    elif model_cfg.get("custom_text"):
        weights = convert_to_custom_text_state_dict(weights)
    if "logit_bias" in weights:
        model_cfg.setdefault("init_logit_bias", -10)  # OpenCLIP's own start; the weights say what it is
    scalars = {name: weights[name].reshape(()) for name in ("logit_scale", "logit_bias") if name in weights}
    return architecture._replace(model_cfg=model_cfg), {**weights, **scalars}


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


def save_weights(weights: dict[str, Tensor], file: Path) -> None:
    """Writes tensors to a file of safetensors or, by its suffix, of torch."""
    if file.suffix == ".safetensors":
        save_file(_apart(weights), file, metadata={"format": "pt"})
        file.chmod(file.parent.stat().st_mode & 0o666)  # safetensors makes it the owner's alone
    else:
        torch.save({name: _alone(tensor) for name, tensor in _apart(weights).items()}, file)


def _apart(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tied weights are written twice: safetensors holds no two names for one memory."""
    seen, apart = set(), {}
    for name, tensor in weights.items():
        tied = tensor.data_ptr() in seen and tensor.numel() > 0
        apart[name] = tensor.clone() if tied else tensor.contiguous()
        seen.add(tensor.data_ptr())
    return apart


def _alone(tensor: Tensor) -> Tensor:
    """torch writes the whole memory behind a tensor, which may be a mapped file."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


@contextlib.contextmanager
def whole_output(out: Path, overwrite: bool) -> Iterator[Path]:
    """A path to write a folder or file to, which becomes `out` only once it is whole.

    Raises InputError where `out` exists, unless `overwrite`, and where it cannot be written, as on a full disk. In a
    folder that exists, files of the same names are replaced and others left.
    """
    if out.exists() and not overwrite:
        raise InputError(f"--out: {out} exists; give another name, or --overwrite")
    part = out.with_name(f"{out.name}.{os.getpid()}.part{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if part.is_dir() and out.is_dir():
            for file in part.iterdir():
                os.replace(file, out / file.name)
        else:
            os.replace(part, out)
    except (OSError, SafetensorError) as error:
        raise InputError(f"--out: {out} cannot be written ({' '.join(str(error).split())})") from error
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        elif part.exists():
            part.unlink()
