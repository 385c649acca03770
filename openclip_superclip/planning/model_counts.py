"""What is counted of a plan's model: GMACs, parameters, bytes of a checkpoint, tokens that the head tells apart."""

import os

from open_clip import get_model_config, get_tokenizer

from ..errors import InputError
from ..method.flops import count_gmacs, model_without_weights
from ..method.token_statistics import special_token_ids
from ..model_files import know_model

HALF = ("bf16", "fp16", "pure_bf16", "pure_fp16")  # precisions that keep the weights in two bytes


def count_model(model: str, precision: str, patch_dropout: float, with_head: bool, counts_special: bool) -> dict:
    """Returns the counts, for JSON; InputError where OpenCLIP does not know the model.

    Args:
        counts_special: whether the head counts the tokens that are no words, too.
    """
    shapes = _model(model)
    counts = {"gmacs": count_gmacs(model, patch_dropout=patch_dropout), **_sizes(shapes, precision, with_head)}
    if with_head:
        special = () if counts_special else special_token_ids(get_tokenizer(model))
        counts |= {"vocabulary": shapes.statistics.vocab_size, "ignored_tokens": len(special)}
    return counts


def _model(name: str):
    """Returns a model as shapes alone; InputError where OpenCLIP does not know it."""
    folder = name.removeprefix("local-dir:")
    if folder != name and not os.path.isfile(f"{folder}/open_clip_config.json"):
        hint = "; superclip demo --data-only writes the demo's" if folder == "demo/model" else ""
        raise InputError(f"model: there is no {folder}/open_clip_config.json{hint}")
    know_model(name, "model")
    if get_model_config(name) is None:
        raise InputError(f"model: OpenCLIP has no model {name}; open_clip.list_models() names those it has")
    return model_without_weights(name)


def _sizes(model, precision: str, with_head: bool) -> dict:
    """Returns the parameters, and the bytes of a checkpoint: weights, AdamW's two moments of each, and counts."""
    ours = ("class_head.", "statistics.")
    num_bytes = 2 if precision in HALF else 4
    parameters = {name: tensor for name, tensor in model.named_parameters() if with_head or not name.startswith(ours)}
    num_parameters = sum(tensor.numel() for tensor in parameters.values())
    others = [
        tensor
        for name, tensor in model.state_dict().items()
        if name not in parameters and (with_head or not name.startswith(ours))
    ]
    return {
        "parameters": num_parameters,
        "head_parameters": sum(tensor.numel() for tensor in model.class_head.parameters()) if with_head else 0,
        "checkpoint_bytes": 3 * num_bytes * num_parameters + sum(tensor.nbytes for tensor in others),
    }
