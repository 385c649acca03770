"""Models with a class head, made by OpenCLIP's factory, for custom training loops."""

import argparse
import difflib
import os
from pathlib import Path

import open_clip
from open_clip.factory import parse_model_name
from open_clip.model import CLIPTextCfg
from torch import nn

from .. import hooks
from ..checkpoints import starting_weights
from ..checkpoints.architecture import read_architecture
from ..checkpoints.model_configurations import (
    holds_text_tower,
    open_tokenizer,
    read_configuration,
    register_model,
)
from ..checkpoints.weights import file_of_weights
from ..data.frequencies import read_frequencies
from ..errors import InputError, listed
from ..flags import Config, config_from, is_idf_file
from ..method.idf import special_token_ids
from .hook_calls import plugins_model_class


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
    model_name = register_model(model_name, "model_name")
    cache_dir = kwargs.get("cache_dir")
    config = Config(
        idf=idf, special_tokens=special_tokens, head_warmup=head_warmup, head_input=head_input
    )
    tokenizer = open_tokenizer(model_name, cache_dir=cache_dir, flag="model_name")
    options = model_options(model_name, pretrained, config, tokenizer, cache_dir=cache_dir)
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
    **options,
) -> dict:
    """Returns arguments of OpenCLIP's factory for the loading of weights, and `superclip` with
    the options of the head, `options` included.

    The tokenizer determines which ids are not words and, with `separate_words`, the length of the
    text tower's tokens.
    """
    loading, load = starting_weights.how_to_load(model_name, pretrained)
    frequencies = None
    if is_idf_file(config.idf):
        of_file = read_frequencies(config.idf)
        of_file.check(tokenizer, config.idf)
        frequencies = of_file.document_frequency, of_file.num_captions
    superclip = options | {
        "idf": config.idf,
        "head_warmup": config.head_warmup,
        "head_input": config.head_input,
        "frequencies": frequencies,
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


def check_models(options: argparse.Namespace) -> None:
    """Raises InputError for a model or weights that do not exist or do not work with --superclip.

    `options` are those of training. The weights of models on a hub are checked when they are
    loaded.
    """
    pretrained = options.pretrained
    model = check_model(options.model, pretrained, "--model", "--pretrained", options.cache_dir)
    starting_weights.check_pretrained(model, pretrained)
    if pretrained and ":" not in model and not os.path.isfile(pretrained):
        starting_weights.released_file(f"{model}:{pretrained}", "--pretrained", options.cache_dir)
    if not model.startswith("hf-hub:"):
        starting_weights.start_of_towers(
            model, pretrained, pretrained_image=options.pretrained_image
        )
    if options.distill_model is not None:
        _check_distils(model, options.model, "--model", options.cache_dir)
        _check_teacher(options.distill_model, options.distill_pretrained, options.cache_dir)
    _check_text_tower(model, options)


def _check_distils(name: str, model: str, flag: str, cache_dir: str | None) -> None:
    model_cfg, _ = read_configuration(name, flag, cache_dir)
    if {"multimodal_cfg", "init_logit_bias"} & model_cfg.keys():
        raise InputError(
            f"{flag}: {model} is a CoCa or SigLIP model, whose outputs OpenCLIP's distillation "
            "does not accept: expected a CLIP model"
        )


def _check_teacher(model: str, pretrained: str | None, cache_dir: str | None) -> None:
    name = check_model(model, pretrained, "--distill-model", "--distill-pretrained", cache_dir)
    _check_distils(name, model, "--distill-model", cache_dir)
    schema, location = parse_model_name(model)
    if schema != "local-dir" or pretrained is None:
        return
    if pretrained not in (model, location):
        raise InputError(
            f"--distill-pretrained {pretrained} has no effect: OpenCLIP uses the weights in "
            f"{location}"
        )
    file_of_weights(Path(location))


def check_model(
    model: str,
    pretrained: str | None,
    flag: str,
    pretrained_flag: str,
    cache_dir: str | None = None,
) -> str:
    """Returns the name under which OpenCLIP finds the model.

    Raises InputError for an unknown model, one that is not accepted, and unknown weights.
    """
    schema, location = parse_model_name(model)
    name = register_model(model, flag)
    if read_configuration(name, flag, cache_dir) is None:
        near = difflib.get_close_matches(name, open_clip.list_models())
        if os.path.isdir(model):
            near = [f"local-dir:{model}"]
        meant = " or ".join(near) or "one of open_clip.list_models()"
        raise InputError(f"{flag}: OpenCLIP has no model '{model}'; did you mean {meant}?")
    if schema == "local-dir":
        _check_place(Path(location), open_clip.get_model_config(model), flag)
    if schema is None and pretrained and not os.path.isfile(pretrained):
        tags = open_clip.list_pretrained_tags_by_model(name)
        if not open_clip.get_pretrained_cfg(name, pretrained):
            raise InputError(
                f"{pretrained_flag} is '{pretrained}', which is neither a file nor weights "
                f"that OpenCLIP has for {name}: expected a file, or one of its tags: "
                f"{listed(tags, 30) or 'it has none'}"
            )
    return name


def _check_place(folder: Path, model_cfg: dict, flag: str) -> None:
    """Raises InputError for a moved folder: OpenCLIP opens its text tower only at the place that
    it was written to."""
    if not holds_text_tower(folder, model_cfg):
        return
    written_to = model_cfg["text_cfg"]["hf_model_name"]
    if Path(written_to).resolve() != folder.resolve():
        raise InputError(
            f"{flag}: {folder} was written as {written_to} and has been moved or copied; write "
            f"it again with superclip export {folder} --out FOLDER, or change hf_model_name in "
            "its open_clip_config.json"
        )


def _check_text_tower(model: str, options: argparse.Namespace) -> None:
    """Raises InputError for an unsupported --lock-text, or if the tokenizer exceeds the model's
    vocabulary."""
    text_cfg = read_configuration(model, "--model", options.cache_dir)[0]["text_cfg"]
    if "hf_model_name" in text_cfg:
        return
    if options.lock_text and not options.lock_text_freeze_layer_norm:
        raise InputError(
            f"--lock-text cannot lock {model} without --lock-text-freeze-layer-norm: add it"
        )
    tokenizer = open_tokenizer(model, options.force_context_length, options.cache_dir)
    largest = int(tokenizer([""]).max())
    vocab_size = text_cfg.get("vocab_size", CLIPTextCfg.vocab_size)
    if largest >= vocab_size:
        raise InputError(
            f"--model: the tokenizer of {model} gives every caption token id {largest}, and "
            f"its text_cfg has vocab_size {vocab_size}: expected at least {largest + 1}, or "
            "another tokenizer"
        )
