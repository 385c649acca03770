"""Models with a class head, made by OpenCLIP's factory, for custom training loops."""

import argparse

import open_clip
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torch import nn

from .. import hooks
from ..checkpoints import starting_weights
from ..checkpoints.architecture import read_architecture, trained_architecture
from ..data.frequencies import Frequencies, read_frequencies
from ..flags import Config, config_from, is_idf_file
from ..method.idf import special_token_ids
from ..method.model import HeadOptions, give_class_head
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
        head_input: the head's input: "patches", their mean as in the paper, or "pooled", the
            vector before the projection.
    """
    cache_dir = kwargs.get("cache_dir")
    architecture = trained_architecture(model_name, pretrained, "model_name", cache_dir)
    model_name = architecture.name
    config = Config(
        idf=idf, special_tokens=special_tokens, head_warmup=head_warmup, head_input=head_input
    )
    tokenizer = architecture.tokenizer(cache_dir)
    frequencies = _frequencies(idf, tokenizer)
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


def add_class_head(
    model: nn.Module,
    tokenizer: SimpleTokenizer | HFTokenizer,
    *,
    idf: str = "online",
    special_tokens: bool = False,
    head_warmup: int = 0,
    head_input: str = "patches",
) -> nn.Module:
    """Adds a class head to an OpenCLIP model, in place, and returns the model, whose outputs are
    then a dict with `class_losses` for `SuperCLIPLoss`.

    The towers' weights stay as they are. The head is random, on the device of the vision tower.

    Args:
        model: OpenCLIP's CLIP, CustomTextCLIP or CoCa; add the head before you wrap the model in
            DDP or compile it, and before you create the optimizer.
        tokenizer: `open_clip.get_tokenizer` of the model.

    The other arguments are those of `create_model_and_transforms`. Raises InputError for other
    models, and for a vision tower without patch tokens.
    """
    config = Config(
        idf=idf, special_tokens=special_tokens, head_warmup=head_warmup, head_input=head_input
    )
    options = _head_options(config, tokenizer, _frequencies(idf, tokenizer))
    return give_class_head(model, HeadOptions(**options))


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
    superclip = _head_options(config, tokenizer, frequencies) | options
    superclip |= {
        "text_length": tokenizer.context_length if separate_words else None,
        "load": load,
        "stored_head": starting_weights.stored_head(model_name, pretrained, cache_dir),
    }
    return loading | {"superclip": superclip}


def _head_options(config: Config, tokenizer, frequencies: Frequencies | None) -> dict:
    return {
        "idf": config.idf,
        "head_warmup": config.head_warmup,
        "head_input": config.head_input,
        "frequencies": frequencies and (frequencies.document_frequency, frequencies.num_captions),
        "ignored_tokens": () if config.special_tokens else special_token_ids(tokenizer),
    }


def _frequencies(idf: str, tokenizer) -> Frequencies | None:
    if not is_idf_file(idf):
        return None
    frequencies = read_frequencies(idf)
    frequencies.check(tokenizer, idf)
    return frequencies


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
