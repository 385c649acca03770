"""Checks and loads the weights that a run starts from, with their class head if they contain
one."""

import functools
import logging
import os
import re
import warnings
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip import factory
from open_clip.factory import _find_checkpoint_in_dir, parse_model_name
from open_clip.model import CLIPTextCfg
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.utils import to_2tuple
from torch import nn

from ..checkpoints import HEAD_NAME, WEIGHTS_NAMES
from ..environment import FACTORY_LOCK, replaced
from ..errors import InputError, as_input_error, listed
from ..method.head import FRESH_HEAD, HEAD_PREFIXES
from .architecture import Architecture, read_architecture
from .model_configurations import model_for_pretrained
from .weights import (
    Weights,
    check_is_no_program,
    check_values,
    file_of_weights,
    read_checkpoint,
    read_head,
)


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
    with as_input_error(f"{flag} is {released}, which cannot be downloaded or read"):
        return open_clip.download_pretrained(cfg, cache_dir=cache_dir)


def stored_head(model: str, pretrained: str | None, cache_dir: str | None) -> Weights | None:
    """Returns the class head and token statistics saved next to the weights of a model, or None
    if there are none."""
    schema, location = parse_model_name(model)
    file = None
    if pretrained:  # takes precedence over the weights in a folder
        if Path(pretrained).name in WEIGHTS_NAMES:
            file = Path(pretrained).with_name(HEAD_NAME)
    elif schema == "hf-hub":
        with suppress(FileNotFoundError):  # the repository has none
            file = Path(
                download_pretrained_from_hf(location, filename=HEAD_NAME, cache_dir=cache_dir)
            )
    elif schema == "local-dir":
        file = Path(location, HEAD_NAME)
    return read_head(file)[0] if file and file.is_file() else None


def check_pretrained(model: str, pretrained: str | None) -> None:
    """Raises InputError for a pretrained tag with local-dir: or hf-hub:, for which OpenCLIP
    ignores --pretrained; `how_to_load` loads a file."""
    if parse_model_name(model)[0] and pretrained and not os.path.isfile(pretrained):
        raise InputError(
            f"--pretrained {pretrained} cannot be used with --model {model}: give a file, or "
            "leave it out"
        )


def start_of_towers(
    architecture: Architecture,
    pretrained: str | None,
    cache_dir: str | None = None,
    *,
    pretrained_image: bool,
) -> str:
    """Returns where OpenCLIP takes the weights of the image tower and of the text tower from.

    Raises InputError if it would ignore --pretrained-image, or that a configuration asks for timm's
    weights.
    """
    model = architecture.name
    schema, location = parse_model_name(model)
    if whole := pretrained or _starting_file(model, None):
        return whole
    if schema == "hf-hub":
        with suppress(FileNotFoundError):  # the repository has none
            download_pretrained_from_hf(location, cache_dir=cache_dir)
            return model
    vision = architecture.model_cfg["vision_cfg"]
    timm_name = vision.get("timm_model_name")
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
    text = architecture.model_cfg["text_cfg"].get("hf_model_name") or "random weights"
    return f"{image} (image) and {text} (text)"


def _starting_file(model: str, pretrained: str | None) -> str | None:
    """Returns the file of weights that a run starts from; None if it is not on this machine."""
    schema, location = parse_model_name(model)
    file = pretrained
    if schema == "local-dir" and not pretrained:
        file = _find_checkpoint_in_dir(Path(location))
    return file if file and os.path.isfile(file) else None


def check_models(training) -> None:
    """Raises InputError for models, or weights, that do not exist or cannot be trained with.

    `training` is a `openclip.parsed_options.Training`. The weights of models on a hub are checked
    when they are loaded.
    """
    options = training.options
    _check_pretrained(training)
    if training.config is not None:
        if not training.model.name.startswith("hf-hub:"):
            training.start_of_towers  # noqa: B018 - InputError if an option would be ignored
        if options.distill_model is not None:
            _check_distils(training.model, options.model, "--model")
            _check_teacher(training)
        _check_text_tower(training)
    if training.reads_contents:
        _check_start(options, None if is_unchecked(options) else training.plain_model)


def _check_pretrained(training) -> None:
    options = training.options
    pretrained = options.pretrained
    model = training.model.name
    _check_tag(model, pretrained, "--pretrained")
    check_pretrained(model, pretrained)
    instead = model_for_pretrained(model)
    if pretrained and instead and training.config is None:
        raise InputError(
            f"--pretrained {pretrained} has no effect with --model {model}: use --model {instead}"
        )
    if pretrained and ":" not in model and not os.path.isfile(pretrained):
        released_file(f"{model}:{pretrained}", "--pretrained", options.cache_dir)


def _check_distils(architecture: Architecture, model: str, flag: str) -> None:
    if {"multimodal_cfg", "init_logit_bias"} & architecture.model_cfg.keys():
        raise InputError(
            f"{flag}: {model} is a CoCa or SigLIP model, whose outputs OpenCLIP's distillation "
            "does not accept: expected a CLIP model"
        )


def _check_teacher(training) -> None:
    model = training.options.distill_model
    pretrained = training.options.distill_pretrained
    _check_tag(training.teacher.name, pretrained, "--distill-pretrained")
    _check_distils(training.teacher, model, "--distill-model")
    schema, location = parse_model_name(model)
    if schema != "local-dir" or pretrained is None:
        return
    if pretrained not in (model, location):
        raise InputError(
            f"--distill-pretrained {pretrained} has no effect: OpenCLIP uses the weights in "
            f"{location}"
        )
    file_of_weights(Path(location))


def _check_tag(model: str, pretrained: str | None, flag: str) -> None:
    """Raises InputError for a --pretrained that is neither a file nor weights that OpenCLIP has for
    the model."""
    if ":" in model or not pretrained or os.path.isfile(pretrained):
        return
    if not open_clip.get_pretrained_cfg(model, pretrained):
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise InputError(
            f"{flag} is '{pretrained}', which is neither a file nor weights that OpenCLIP has for "
            f"{model}: expected a file, or one of its tags: {listed(tags, 30) or 'it has none'}"
        )


def _check_text_tower(training) -> None:
    """Raises InputError for an unsupported --lock-text, for tokens of various lengths if each loss
    has its own, or if the tokenizer exceeds the model's vocabulary."""
    options = training.options
    model = training.model.name
    text_cfg = training.model.model_cfg["text_cfg"]
    varies = getattr(options, "naflex_max_text_tokens", None) or text_cfg.get("variable_text")
    if varies and training.separates_words:
        raise InputError(
            "--superclip-captions dual, and rows without a caption, need tokens of one length: "
            "leave out --naflex-max-text-tokens, or choose a --model without variable_text"
        )
    if "hf_model_name" in text_cfg:
        return
    if options.lock_text and not options.lock_text_freeze_layer_norm:
        raise InputError(
            f"--lock-text cannot lock {model} without --lock-text-freeze-layer-norm: add it"
        )
    largest = int(training.tokenizer([""]).max())
    vocab_size = text_cfg.get("vocab_size", CLIPTextCfg.vocab_size)
    if largest >= vocab_size:
        raise InputError(
            f"--model: the tokenizer of {model} gives every caption token id {largest}, and "
            f"its text_cfg has vocab_size {vocab_size}: expected at least {largest + 1}, or "
            "another tokenizer"
        )


def check_start_of_run(options: Namespace) -> None:
    """Raises InputError for a model or weights with which a run cannot start; the runs of a study
    are checked once."""
    names = (
        "model",
        "pretrained",
        "siglip",
        "force_custom_text",
        "force_image_size",
        "force_context_length",
        "use_naflex",  # of OpenCLIP 4
    )
    values = {name: getattr(options, name, None) for name in names}
    size = values["force_image_size"]
    values["force_image_size"] = tuple(size) if isinstance(size, list) else size
    _check_values_of_start(**values)


@functools.cache
def _check_values_of_start(**values) -> None:
    options = Namespace(**values)
    # a file may exist only on nodes
    is_tag = re.fullmatch(r"[\w-]+", options.pretrained or "")
    if is_tag and options.model in open_clip.list_models():
        _check_tag(options.model, options.pretrained, "--pretrained")
    model = None
    if not is_unchecked(options):
        model = plain_model(read_architecture(options.model).with_options(values), options)
    _check_start(options, model)


def is_unchecked(options: Namespace) -> bool:
    """Returns whether the model of a training is not checked: it is on a hub or only on the nodes,
    or takes images of any shape."""
    model = options.model
    schema, location = parse_model_name(model)
    is_missing = schema == "local-dir" and not os.path.isdir(location)
    is_missing |= model.endswith(".json") and not os.path.isfile(model)
    return schema == "hf-hub" or is_missing or getattr(options, "use_naflex", False)


def _check_start(options: Namespace, plain: nn.Module | None) -> None:
    """Raises InputError if the weights that a run starts from cannot be read, contain NaN or
    infinity or are of another model, if OpenCLIP would train the model by another model's loss, or
    if the image tower cannot take images of its size.

    `options` are those of training. Without the model, only the values are checked.
    """
    model = options.model
    of_weights = "--pretrained" if options.pretrained else "--model"
    file = _starting_file(model, options.pretrained)
    if file is not None:
        _check_values_in(file, of_weights)
    if plain is None:
        return
    is_coca = hasattr(plain, "text_decoder")
    if is_coca != ("coca" in model.lower()):
        raise InputError(
            f"--model: {model} is {'a' if is_coca else 'no'} CoCa model, and OpenCLIP recognises "
            "these by 'coca' in --model: rename its folder or file"
        )
    of_size = "--model" if options.force_image_size is None else "--force-image-size"
    _check_image_size(plain, of_size, model)
    if file is not None and not file.endswith(".npz"):
        with (
            as_input_error(f"{of_weights}: {file} is not of {model}, or damaged"),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # that no values are copied to the meta device
            _load(plain, file)


@torch.no_grad()
def _check_image_size(model: nn.Module, flag: str, name: str) -> None:
    """Raises InputError, which names `flag` and the model's `name`, if the image tower of
    OpenCLIP's `model` cannot take images of its size."""
    size = model.visual.image_size
    with as_input_error(
        f"{flag}: the image tower of {name} cannot take images of {size} px; choose another size "
        "or --model"
    ):
        model.encode_image(torch.zeros(2, 3, *to_2tuple(size), device="meta"))


def _check_values_in(file: str, flag: str) -> None:
    try:
        with as_input_error(f"{file} cannot be read"):
            if file.endswith(".npz"):  # of big_vision
                with np.load(file) as arrays:
                    weights = {
                        name: torch.from_numpy(array)
                        for name, array in arrays.items()
                        if array.dtype.kind == "f"
                    }
            else:
                weights = read_checkpoint(file).weights
        check_values(weights, file)
    except InputError as error:
        raise InputError(f"{flag}: {error}") from error


def plain_model(architecture: Architecture, options: Namespace) -> nn.Module:
    """Returns OpenCLIP's model of a training, without a class head, on the meta device."""
    bias = {"init_logit_bias": -10} if options.siglip else {}
    return architecture.build(force_custom_text=options.force_custom_text, **bias)


def how_to_load(model: str, pretrained: str | None) -> tuple[dict, functools.partial | None]:
    """Returns how to load --pretrained.

    Raises InputError as `check_pretrained` does, and for a TorchScript archive.

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
    check_is_no_program(pretrained)
    if not parse_model_name(model)[0]:
        return {}, None
    load = functools.partial(_load_ignored, file=pretrained)
    return {"load_weights": False, "pretrained_text": False}, load


def _load_ignored(model: nn.Module, *, file: str) -> None:
    logging.info(f"SuperCLIP: the model starts from {file}, which OpenCLIP would not have loaded")
    _load(model, file)


def _load(model: nn.Module, file: str) -> None:
    """Loads a file as OpenCLIP does, except for a class head that the model does not have."""
    unused = () if hasattr(model, "class_head") else HEAD_PREFIXES

    def load_state_dict(path, *args, **kwargs):
        state = load(path, *args, **kwargs)
        return {name: tensor for name, tensor in state.items() if not name.startswith(unused)}

    with FACTORY_LOCK:
        load = factory.load_state_dict
        with replaced(factory, load_state_dict=load_state_dict):
            open_clip.load_checkpoint(model, file)


def starts_with_head(model: str | None, pretrained: str | None) -> bool:
    """Returns whether the weights of --pretrained, or of a local-dir: model, contain a class
    head."""
    schema, location = parse_model_name(model) if model else (None, None)
    source = location if schema == "local-dir" else pretrained
    try:
        return bool(source and read_checkpoint(source, checksums=False).has_head)
    except InputError:  # a tag, or OpenCLIP reports the error
        return False
