"""Models with a class head, made by OpenCLIP's factory, for custom training loops."""

import difflib
import os

import open_clip
from open_clip.factory import parse_model_name
from open_clip.model import CLIPTextCfg

from ..checkpoints.model_files import know_model
from ..checkpoints.pretrained import how_to_load, stored_head
from ..config import is_idf_file
from ..data.frequencies import read_frequencies
from ..errors import InputError, listed, reason
from ..method.token_statistics import special_token_ids
from .unpatched import plugins_model_class


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
        model_name: as for `open_clip.create_model_and_transforms`, like `pretrained` and the keywords not listed here.
        pretrained: a tag or a file, or None.
        idf: "online", "off" for equal weights, or a file that `superclip frequencies` wrote.
        special_tokens: whether start, end and padding tokens count as words, as in the authors' code.
        head_warmup: number of captions during which the class loss trains only the head.
        head_input: the head's input: "patches", their mean as in the paper; "pooled", the vector before the
            projection; or "both", their sum.
    """
    know_model(model_name, "model_name")
    if is_idf_file(idf) and not os.path.isfile(idf):
        raise InputError(f"idf is '{idf}'; expected online, off or a file that superclip frequencies wrote")
    loading, load = how_to_load(model_name, pretrained)
    superclip = head_options(
        model_name, pretrained, idf, special_tokens, cache_dir=kwargs.get("cache_dir"), load=load,
        head_warmup=head_warmup, head_input=head_input,
    )  # fmt: skip
    if not kwargs.get("load_weights", True) and load is None:
        superclip["stored_head"] = None
    with plugins_model_class():
        return open_clip.create_model_and_transforms(
            model_name, pretrained, **{"output_dict": True, **loading, **kwargs, "superclip": superclip}
        )


def head_options(
    model_name: str,
    pretrained: str | None,
    idf: str,
    special_tokens: bool,
    *,
    separate_words: bool = False,
    context_length: int | None = None,
    cache_dir: str | None = None,
    load=None,
    **options,
) -> dict:
    """Returns the model's `superclip` argument, `options` included.

    The tokenizer determines which ids are not words and, with `separate_words`, the length of the text tower's tokens.
    """
    tokenizer = open_clip.get_tokenizer(model_name, cache_dir=cache_dir, context_length=context_length)
    frequencies = None
    if is_idf_file(idf):
        frequencies = read_frequencies(idf)
        frequencies.check(tokenizer, idf)
    return options | {
        "idf": idf,
        "frequencies": frequencies,
        "ignored_tokens": () if special_tokens else special_token_ids(tokenizer),
        "text_length": tokenizer.context_length if separate_words else None,
        "load": load,
        "stored_head": stored_head(model_name, pretrained, cache_dir),
    }


def check_model(model_name: str, pretrained: str | None = None, flags: tuple[str, str] = ("--model", "--pretrained")):
    """Raises InputError for a model or weights that OpenCLIP does not find; hubs are not checked."""
    know_model(model_name, flags[0])
    schema, place = parse_model_name(model_name)
    if schema == "hf-hub":
        return
    name = model_name if schema else place.replace("/", "-")  # OpenCLIP's own lookup
    try:
        known = open_clip.get_model_config(name) is not None
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{flags[0]}: {model_name} has no readable open_clip_config.json ({reason(error)})") from error
    if not known:
        close = difflib.get_close_matches(name, open_clip.list_models(), n=3)
        raise InputError(
            f"{flags[0]}: OpenCLIP knows no '{model_name}'; "
            + (f"did you mean {' or '.join(close)}?" if close else "open_clip.list_models() names those that it knows")
        )
    if schema is None and pretrained and not os.path.isfile(pretrained):
        tags = open_clip.list_pretrained_tags_by_model(name)
        if not open_clip.get_pretrained_cfg(name, pretrained):
            raise InputError(
                f"{flags[1]} is '{pretrained}', no file and none of the weights that OpenCLIP knows of {name}: "
                f"expected a file or one of {listed(tags, 30) or 'none'}"
            )


OTHER_KINDS = {  # other models that OpenCLIP 4 can train, by the part of the configuration that only they have
    "genlip_cfg": "it generates captions and has no contrastive loss",
    "genlap_cfg": "it generates captions of audio and has no contrastive loss",
    "audio_cfg": "it has an audio tower and no patch tokens of an image",
}


def check_vocabulary(model_name: str, cache_dir: str | None = None, context_length: int | None = None) -> None:
    """Raises InputError for an unsupported kind of model, or if the tokenizer exceeds its vocabulary.

    Hubs and Hugging Face towers, which have their own configuration, are checked at the first batch.
    """
    if parse_model_name(model_name)[0] == "hf-hub":
        return
    model_cfg = open_clip.get_model_config(model_name)
    for part, kind in OTHER_KINDS.items():
        if part in model_cfg:
            raise InputError(
                f"--superclip cannot train --model {model_name}: {kind}; expected a vision and a text tower with a "
                "contrastive loss"
            )
    text_cfg = model_cfg["text_cfg"]
    if "hf_model_name" in text_cfg:
        return
    tokenizer = open_clip.get_tokenizer(model_name, cache_dir=cache_dir, context_length=context_length)
    largest, vocab_size = int(tokenizer([""]).max()), text_cfg.get("vocab_size", CLIPTextCfg.vocab_size)
    if largest >= vocab_size:
        raise InputError(
            f"--model: the tokenizer of {model_name} gives every caption token id {largest}, and its text_cfg has "
            f"vocab_size {vocab_size}: expected {largest + 1} or more there, or the tokenizer of that vocabulary"
        )
