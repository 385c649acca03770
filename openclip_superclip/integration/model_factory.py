"""Models with a class head for training loops of one's own, made by OpenCLIP's factory."""

import os

import open_clip

from ..config import is_idf_file
from ..data.frequency_file import read_frequencies
from ..errors import InputError
from ..method.token_statistics import special_token_ids
from .unpatched_openclip import plugins_model_class


def create_model_and_transforms(
    model_name: str,
    pretrained: str | None = None,
    *,
    idf: str = "online",
    special_tokens: bool = False,
    head_warmup: int = 0,
    **kwargs,
):
    """Returns OpenCLIP's (model, preprocess_train, preprocess_val), the model with a class head.

    Args:
        model_name, pretrained, kwargs: as for `open_clip.create_model_and_transforms`.
        idf: "online", "off" for equal weights, or a file that `superclip frequencies` wrote.
        special_tokens: whether start, end and padding tokens count as words, as in the authors' code.
        head_warmup: captions during which the class loss trains the head alone.
    """
    if is_idf_file(idf) and not os.path.isfile(idf):
        raise InputError(f"idf is '{idf}'; expected online, off or a file that superclip frequencies wrote")
    superclip = head_options(
        model_name,
        idf=idf,
        special_tokens=special_tokens,
        head_warmup=head_warmup,
        cache_dir=kwargs.get("cache_dir"),
    )
    with plugins_model_class():
        return open_clip.create_model_and_transforms(
            model_name, pretrained, **{"output_dict": True, **kwargs, "superclip": superclip}
        )


def head_options(
    model_name: str,
    *,
    idf: str,
    special_tokens: bool,
    accum_freq: int = 1,
    head_warmup: int = 0,
    dual: bool = False,
    context_length: int | None = None,
    cache_dir: str | None = None,
) -> dict:
    """Returns the model's `superclip` argument; the tokenizer says which ids are no words, and where a text ends."""
    tokenizer = open_clip.get_tokenizer(model_name, cache_dir=cache_dir, context_length=context_length)
    frequencies = None
    if is_idf_file(idf):
        frequencies = read_frequencies(idf)
        frequencies.check(tokenizer, idf)
    return {
        "idf": idf,
        "frequencies": frequencies,
        "ignored_tokens": () if special_tokens else special_token_ids(tokenizer),
        "accum_freq": accum_freq,
        "head_warmup": head_warmup,
        "text_length": tokenizer.context_length if dual else None,
    }
