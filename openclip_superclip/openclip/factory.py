"""Models with a class head, made by OpenCLIP's factory, for custom training loops."""

import argparse
import os
from pathlib import Path

import open_clip
from open_clip.factory import parse_model_name
from open_clip.model import CLIPTextCfg
from torch import nn

from .. import hooks
from ..checkpoints import starting_weights
from ..checkpoints.architecture import (
    Architecture,
    read_architecture,
    trained_architecture,
)
from ..checkpoints.model_configurations import holds_text_tower
from ..checkpoints.weights import file_of_weights
from ..data.frequencies import Frequencies, read_frequencies
from ..errors import InputError, listed
from ..flags import Config, config_from, is_idf_file
from ..method.idf import special_token_ids
from .hook_calls import plugins_model_class
from .parsed_options import Training


def create_model_and_transforms(
    model_name: str,
    pretrained: str | None = None,
    *,
    idf: str = "online",
    special_tokens: bool = False,
    head_warmup: int = 0,
    head_input: str = "patches",
    **kwargs,
):
    """Returns OpenCLIP's (model, preprocess_train, preprocess_val) with a class head on the model.

    Args:
        model_name: as for `open_clip.create_model_and_transforms`, like `pretrained` and the
            keywords not listed here.
        pretrained: a tag or a file, or None.
        idf: "online", "off" for equal weights, or a file that `superclip frequencies` wrote.
        special_tokens: whether start, end and padding tokens count as words, as in the authors'
            code.
        head_warmup: number of captions during which the class loss trains only the head.
        head_input: the head's input: "patches", their mean as in the paper; "pooled", the vector
            before the projection; or "both", their sum.
    """
    cache_dir = kwargs.get("cache_dir")
    architecture = trained_architecture(model_name, pretrained, "model_name", cache_dir)
    model_name = architecture.name
    config = Config(
        idf=idf, special_tokens=special_tokens, head_warmup=head_warmup, head_input=head_input
    )
    tokenizer = architecture.tokenizer("model_name", cache_dir)
    frequencies = None
    if is_idf_file(idf):
        frequencies = read_frequencies(idf)
        frequencies.check(tokenizer, idf)
    options = model_options(
        model_name, pretrained, config, tokenizer, cache_dir=cache_dir, frequencies=frequencies
    )
    superclip = options["superclip"]
    if not kwargs.get("load_weights", True) and superclip["load"] is None:
        superclip["stored_head"] = None
    with plugins_model_class():
        return open_clip.create_model_and_transforms(
            model_name, pretrained, **{"output_dict": True, **options, **kwargs}
        )


def model_options(
    model_name: str,
    pretrained: str | None,
    config: Config,
    tokenizer,
    *,
    separate_words: bool = False,
    cache_dir: str | None,
    frequencies: Frequencies | None,
    **options,
) -> dict:
    """Returns arguments of OpenCLIP's factory for the loading of weights, and `superclip` with
    the options of the head, `options` included; `frequencies` are those of --superclip-idf FILE.

    The tokenizer determines which ids are not words and, with `separate_words`, the length of the
    text tower's tokens.
    """
    loading, load = starting_weights.how_to_load(model_name, pretrained)
    superclip = options | {
        "idf": config.idf,
        "head_warmup": config.head_warmup,
        "head_input": config.head_input,
        "frequencies": frequencies and (frequencies.document_frequency, frequencies.num_captions),
        "ignored_tokens": () if config.special_tokens else special_token_ids(tokenizer),
        "text_length": tokenizer.context_length if separate_words else None,
        "load": load,
        "stored_head": starting_weights.stored_head(model_name, pretrained, cache_dir),
    }
    return loading | {"superclip": superclip}


def model_without_values(options: argparse.Namespace) -> nn.Module:
    """Returns the model that OpenCLIP's options train, on the meta device: after the plugins'
    changes, and locked."""
    config = config_from(vars(options))
    architecture = read_architecture(options.model).with_options(vars(options))
    changes = {
        "precision": options.precision,
        "output_dict": True,
        "force_custom_text": options.force_custom_text,
        "force_patch_dropout": options.force_patch_dropout,
    }
    if options.siglip:
        changes["init_logit_bias"] = -10
    if config is not None:
        changes["superclip"] = {"head_input": config.head_input}
    with plugins_model_class():
        model = architecture.build(**changes)
    hooks.plugin_manager().hook.open_clip_model_created(args=options, model=model)
    if options.lock_image:
        model.lock_image_tower(options.lock_image_unlocked_groups)
    if options.lock_text:
        model.lock_text_tower(
            options.lock_text_unlocked_layers, options.lock_text_freeze_layer_norm
        )
    return model


def check_models(training: Training) -> None:
    """Raises InputError for a model or weights that do not exist or do not work with --superclip.

    The weights of models on a hub are checked when they are loaded.
    """
    options = training.options
    pretrained = options.pretrained
    model = training.model.name
    _check_place(training.model, "--model")
    check_tag(model, pretrained, "--pretrained")
    starting_weights.check_pretrained(model, pretrained)
    if pretrained and ":" not in model and not os.path.isfile(pretrained):
        starting_weights.released_file(f"{model}:{pretrained}", "--pretrained", options.cache_dir)
    if not model.startswith("hf-hub:"):
        training.start_of_towers  # noqa: B018 - InputError if an option would be ignored
    if options.distill_model is not None:
        _check_distils(training.model, options.model, "--model")
        _check_teacher(training)
    _check_text_tower(training)


def _check_distils(architecture: Architecture, model: str, flag: str) -> None:
    if {"multimodal_cfg", "init_logit_bias"} & architecture.model_cfg.keys():
        raise InputError(
            f"{flag}: {model} is a CoCa or SigLIP model, whose outputs OpenCLIP's distillation "
            "does not accept: expected a CLIP model"
        )


def _check_teacher(training: Training) -> None:
    model = training.options.distill_model
    pretrained = training.options.distill_pretrained
    _check_place(training.teacher, "--distill-model")
    check_tag(training.teacher.name, pretrained, "--distill-pretrained")
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


def check_tag(model: str, pretrained: str | None, flag: str) -> None:
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


def _check_text_tower(training: Training) -> None:
    """Raises InputError for an unsupported --lock-text, or if the tokenizer exceeds the model's
    vocabulary."""
    options = training.options
    model = training.model.name
    text_cfg = training.model.model_cfg["text_cfg"]
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
