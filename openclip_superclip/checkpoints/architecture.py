"""Finds the architecture of a checkpoint: its model configuration and preprocessing."""

import copy
import logging
import tempfile
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch
from open_clip import factory
from open_clip.constants import HF_CONFIG_NAME
from open_clip.factory import parse_model_name
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.transform import merge_preprocess_dict
from torch import nn

from ..environment import FACTORY_LOCK, log_level, replaced
from ..errors import InputError, as_input_error
from ..files import write_json
from ..method.head import ClassHead, vocabulary_size
from ..method.head_input import head_width, patch_tokens
from ..method.idf import TokenStatistics, special_token_ids
from .model_configurations import (
    check_preprocessing,
    holds_text_tower,
    is_file,
    openclip_name,
    read_configuration,
    register_file,
)
from .trainer_files import trained_model
from .weights import Checkpoint, Weights


class Architecture(NamedTuple):
    """The configuration of a model, without weights."""

    name: str  # value of --model, by which OpenCLIP finds the tokenizer
    model_cfg: dict
    preprocess_cfg: dict
    source: str = "--model"  # the flag or file that names it, for messages

    def build(self, device: str = "meta", **model_kwargs) -> nn.Module:
        """Returns OpenCLIP's model without the weights. Raises InputError if OpenCLIP cannot build
        it.

        If the plugin's hooks are active, the argument `superclip` adds a class head.
        """
        config = {"model_cfg": self.model_cfg, "preprocess_cfg": self.preprocess_cfg}
        with (
            log_level(logging.ERROR),  # OpenCLIP warns that the model has no weights
            as_input_error(f"{self.source}: OpenCLIP cannot build {self.name}"),
            tempfile.TemporaryDirectory() as folder,
            torch.device(device),
        ):
            write_json(Path(folder, HF_CONFIG_NAME), config)
            return open_clip.create_model(
                f"local-dir:{folder}",
                load_weights=False,
                pretrained_text=False,
                device=device,
                **model_kwargs,
            )

    def tokenizer(self, cache_dir: str | None = None):
        """Returns OpenCLIP's tokenizer for the model; InputError if it cannot be opened."""
        context = self.model_cfg["text_cfg"].get("context_length")
        # files of a name may differ
        configurations = {**factory._MODEL_CONFIGS, self.name: self.model_cfg}
        with (
            FACTORY_LOCK,
            replaced(factory, _MODEL_CONFIGS=configurations),
            as_input_error(f"{self.source}: {self.name} has no tokenizer that OpenCLIP can open"),
        ):
            tokenizer = open_clip.get_tokenizer(
                self.name, context_length=context, cache_dir=cache_dir
            )
            special_token_ids(tokenizer)  # fails for tokenizers of other kinds
            tokenizer(["a"])  # fails without a padding token
            return tokenizer

    def with_options(self, options: dict) -> "Architecture":
        """Returns the architecture after the changes that OpenCLIP's trainer makes for
        command-line `options`."""
        model_cfg = copy.deepcopy(self.model_cfg)
        if options.get("force_quick_gelu"):
            model_cfg["quick_gelu"] = True
        if options.get("force_naflex_vision"):  # any image shape, like OpenCLIP 4's --use-naflex
            with as_input_error("--model: the run had --use-naflex, which requires OpenCLIP 4"):
                from open_clip.naflex_convert import apply_naflex_vision_config
            apply_naflex_vision_config(model_cfg)
        size = options.get("force_image_size")
        if size is not None:
            model_cfg["vision_cfg"]["image_size"] = (
                size[0] if isinstance(size, list | tuple) and len(size) == 1 else size
            )
        if options.get("force_context_length") is not None:
            model_cfg["text_cfg"]["context_length"] = options["force_context_length"]
        names = ("mean", "std", "interpolation", "resize_mode")
        forced = {name: options.get(f"image_{name}") for name in names}
        return self._replace(
            model_cfg=model_cfg, preprocess_cfg=merge_preprocess_dict(self.preprocess_cfg, forced)
        )


def read_architecture(model: str, tag: str = "", flag: str = "--model") -> Architecture:
    """Returns the architecture of a built-in model, local-dir:FOLDER, hf-hub:REPO or a JSON
    configuration file.

    Raises InputError, which names `flag`, if there is no such model. The `tag` of released weights
    determines the preprocessing.
    """
    if Path(model).name == HF_CONFIG_NAME:
        model = f"local-dir:{Path(model).parent}"
    architecture = _read(openclip_name(model), tag, flag, None)
    return architecture._replace(name=Path(model).stem) if is_file(model) else architecture


def trained_architecture(
    model: str, tag: str | None, flag: str, cache_dir: str | None
) -> Architecture:
    """Returns the architecture of a --model of training under OpenCLIP's name for it, with which a
    JSON file is registered.

    Raises InputError as `read_architecture` does, and for a file that training would read in
    another way.
    """
    name = openclip_name(model)
    architecture = _read(name, tag or "", flag, cache_dir)
    _check_place(architecture, flag)
    if is_file(model):
        register_file(name, architecture.model_cfg, architecture.preprocess_cfg, flag)
    return architecture


def _check_place(architecture: Architecture, flag: str) -> None:
    """Raises InputError for a moved folder: OpenCLIP opens its text tower only at the place that
    it was written to."""
    schema, location = parse_model_name(architecture.name)
    folder = Path(location)
    if schema != "local-dir" or not holds_text_tower(folder, architecture.model_cfg):
        return
    written_to = open_clip.get_model_config(architecture.name)["text_cfg"]["hf_model_name"]
    if Path(written_to).resolve() != folder.resolve():
        raise InputError(
            f"{flag}: {folder} was written as {written_to} and has been moved or copied; write "
            f"it again with superclip export {folder} --out FOLDER, or change hf_model_name in "
            "its open_clip_config.json"
        )


def _read(name: str, tag: str, flag: str, cache_dir: str | None) -> Architecture:
    model_cfg, preprocess_cfg = read_configuration(name, flag, cache_dir)
    released = open_clip.get_pretrained_cfg(name, tag)  # empty for a file, folder or repository
    return Architecture(name, model_cfg, merge_preprocess_dict(preprocess_cfg, released), flag)


def fit(architecture: Architecture, weights: Weights) -> tuple[Architecture, Weights]:
    """Returns both, adapted to each other if they differ in ways that OpenCLIP accepts.

    These are whether the text tower is a module of its own, and the shapes of logit_scale and
    logit_bias.
    """
    model_cfg = copy.deepcopy(architecture.model_cfg)
    model_cfg.pop("nonscalar_logit_scale", None)  # `read_checkpoint` returns scalars
    if "multimodal_cfg" not in model_cfg:
        # unsupported by stock CLIP, and unused by the head
        model_cfg["vision_cfg"].pop("output_tokens", None)
    if any(name.startswith("text.") for name in weights):
        model_cfg["custom_text"] = True
    elif model_cfg.get("custom_text"):
        weights = convert_to_custom_text_state_dict(weights)
    if "logit_bias" in weights:
        model_cfg.setdefault("init_logit_bias", -10)  # OpenCLIP's default; the weights replace it
    return architecture._replace(model_cfg=model_cfg), weights


def architecture_of(
    checkpoint: Checkpoint, model: str | None = None, flag: str = "--model"
) -> Architecture:
    """Returns the architecture of a checkpoint, with the changes made by the run's options.

    `model` is the value of `flag`, if the user gives one.
    """
    options = checkpoint.options
    if model is None:
        model = trained_model(checkpoint)
        location = Path(model.removeprefix("local-dir:"))
        problem = ""
        if not model:
            problem = "is not recorded"
        elif model.startswith("hf-hub:"):  # only the user may name a download
            problem = f"is {model}; if you trust it, give it"
        elif location.is_absolute() and not location.exists():
            problem = f"is not at {location}"
        if problem:
            raise InputError(f"{flag} is missing: the model of {checkpoint.path} {problem}")
        flag = str(checkpoint.path)
    architecture = read_architecture(model, str(options.get("pretrained", "")), flag)
    architecture = architecture.with_options(options)
    source = f"{checkpoint.path} records a preprocessing (image_mean and the like)"
    check_preprocessing(architecture.preprocess_cfg, source)
    return architecture


def expected_head(
    model: nn.Module, head_input: str = "patches", *, has_fixed_idf: bool = False
) -> Weights:
    """Returns the class head and token statistics that match OpenCLIP's `model`, as tensors on the
    meta device.

    With `has_fixed_idf`, they include the counts of --superclip-idf FILE.
    """
    vocab_size = vocabulary_size(model)
    width = head_width(model.visual, patch_tokens(model.visual), head_input)
    with torch.device("meta"):
        head = ClassHead(width, vocab_size, head_input)
        statistics = TokenStatistics(vocab_size)
    parts = {"class_head": head, "statistics": statistics}
    if has_fixed_idf:
        parts["fixed_idf"] = statistics  # the same names and shapes
    return nn.ModuleDict(parts).state_dict()
