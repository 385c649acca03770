"""The class head, and loading weights with or without a head into models with or without one."""

import logging
from collections.abc import Container

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..flags import HEAD_INPUTS
from .finite_weights import first_non_finite
from .loss import class_loss


class ClassHead(nn.Module):
    """LayerNorm and a linear map from the tower's width to the vocabulary (paper, section 3).

    Called with captions, it returns one loss per caption and never materializes all logits. Gains
    and biases are 1-d, so OpenCLIP does not apply weight decay to them.

    Args:
        width: W, the width of its input.
        vocab_size: V, the number of token ids.
        reads: its input, one of HEAD_INPUTS. Inputs other than the paper's are recorded in a
            buffer, and so in checkpoints.
    """

    def __init__(self, width: int, vocab_size: int, reads: str = "patches"):
        super().__init__()
        self.reads = reads
        self.ln = nn.LayerNorm(width)
        self.weight = nn.Parameter(torch.randn(vocab_size, width) * width**-0.5)  # [V, W]
        self.bias = nn.Parameter(torch.zeros(vocab_size))  # [V]
        if reads != "patches":
            self.register_buffer("input", torch.tensor(HEAD_INPUTS.index(reads)))

    def forward(self, head_input: Tensor, tokens: Tensor, idf: Tensor) -> Tensor:
        """Returns the class losses, float32 [B], of head_input [B, W], tokens [B, L] and idf [V].

        Take their sum or mean, as for `class_loss`.
        """
        features = self._normalise(head_input)
        return class_loss(features, self.weight, self.bias, tokens, idf)

    def logits(self, head_input: Tensor) -> Tensor:
        """Returns the vocabulary logits of the head's input or of patch tokens: [..., W] to
        [..., V]."""
        features = self._normalise(head_input)
        return F.linear(features.to(self.weight.dtype), self.weight, self.bias)

    def _normalise(self, head_input: Tensor) -> Tensor:
        # In float32 at any precision of the model: the mean of many tokens is the small difference
        # of large numbers.
        return F.layer_norm(
            head_input.float(),
            self.ln.normalized_shape,
            self.ln.weight.float(),
            self.ln.bias.float(),
        )


def head_input_of(weights: dict[str, Tensor], prefix: str = "") -> str:
    """Returns the input of the class head in a model's weights; InputError if it is not one of
    HEAD_INPUTS."""
    recorded = weights.get(f"{prefix}class_head.input")
    if recorded is None:
        return "patches"
    if recorded.numel() != 1 or recorded.is_floating_point() or int(recorded) != 1:
        raise InputError(
            f"the weights' class_head.input is {recorded.tolist()}; expected 1, the pooled "
            "vector: the file is damaged, or another version of openclip-superclip wrote it "
            "(version 0.2 wrote 2, the sum of both inputs)"
        )
    return "pooled"


# Names in the checkpoints of models with a class head, which OpenCLIP's models lack.
HEAD_PREFIXES = ("class_head.", "statistics.", "fixed_idf.")
NUM_CAPTIONS = "statistics.num_captions"
DOCUMENT_FREQUENCY = "statistics.document_frequency"
# the counts of --superclip-idf FILE
FIXED_IDF = ("fixed_idf.document_frequency", "fixed_idf.num_captions")
# The head in checkpoints of SuperCLIP's authors, and its names here.
AUTHORS_HEAD = {
    "text_decoder.ln_mlp.weight": "class_head.ln.weight",
    "text_decoder.ln_mlp.bias": "class_head.ln.bias",
    "text_decoder.text_projection.weight": "class_head.weight",
    "text_decoder.text_projection.bias": "class_head.bias",
}
AUTHORS_STATISTICS = {"cap_fq": DOCUMENT_FREQUENCY, "num_samples": NUM_CAPTIONS}
FRESH_HEAD = "SuperCLIP: the weights contain no class head; training starts with a new one"


def vocabulary_size(model: nn.Module) -> int:
    """Returns the number of token ids of an OpenCLIP model."""
    return getattr(model, "vocab_size", None) or model.text.vocab_size


def head_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the class head and the token statistics in a model's weights; {} for a plain
    model."""
    return {name: tensor for name, tensor in weights.items() if name.startswith(HEAD_PREFIXES)}


def is_of_authors(names: Container[str]) -> bool:
    """Returns whether a checkpoint is one of the SuperCLIP authors' code."""
    return any(name in names for name in ("cap_fq", "text_decoder.ln_mlp.weight"))


def without_class_head(model_class: type) -> type:
    """Returns a subclass of the same name that ignores a class head in the weights that it
    loads."""

    def __init__(self, *args, **kwargs):
        model_class.__init__(self, *args, **kwargs)
        self._register_load_state_dict_pre_hook(_leave_head_out)

    return type(
        model_class.__name__,
        (model_class,),
        {"__init__": __init__, "__module__": model_class.__module__},
    )


def _leave_head_out(state_dict, prefix, *_) -> None:
    head = [name for name in state_dict if name.removeprefix(prefix).startswith(HEAD_PREFIXES)]
    for name in head:
        del state_dict[name]
    if head:
        logging.info(
            "SuperCLIP: the weights contain a class head, which is ignored without --superclip"
        )


def keep_fresh_head(module, state_dict, prefix, *_) -> None:
    """Allows loading weights without a head, which keeps the model's head and statistics, and logs
    what was loaded.

    Raises InputError for weights of the authors' code and for non-finite ones.
    """
    if name := first_non_finite(state_dict.items()):
        raise InputError(
            f"{name} of the weights contains NaN or infinity: start from other weights"
        )
    for name in [name for name in state_dict if "_orig_mod." in name]:  # torch.compile's prefix
        state_dict[name.replace("_orig_mod.", "")] = state_dict.pop(name)
    if is_of_authors(state_dict):
        raise InputError(
            "these weights are a checkpoint of SuperCLIP's authors: superclip export FILE --model "
            "MODEL --with-head --out FOLDER makes it a folder, which --model local-dir:FOLDER opens"
        )
    ours = {f"{prefix}{name}": tensor for name, tensor in head_of(module.state_dict()).items()}
    stored_head = module.stored_head or {}
    module.stored_head = None
    if not ours.keys() & state_dict.keys():
        state_dict.update({f"{prefix}{name}": tensor for name, tensor in stored_head.items()})
    if not ours.keys() & state_dict.keys():
        logging.info(FRESH_HEAD)
        state_dict.update(ours)
        return
    _keep_fixed_idf(state_dict, f"{prefix}fixed_idf.", ours)
    reads = head_input_of(state_dict, prefix)
    if reads != module.class_head.reads:
        raise InputError(
            f"--superclip-head-input is {module.class_head.reads}, and the weights' class head "
            f"reads {reads}: give --superclip-head-input {reads}, or weights without a head, as "
            "superclip export writes them, for a new one"
        )
    num_captions = state_dict.get(f"{prefix}{NUM_CAPTIONS}")
    if num_captions is not None:  # otherwise torch reports the missing key
        logging.info(
            f"SuperCLIP: the weights contain a class head and the counts of {num_captions:,} "
            "captions"
        )


def _keep_fixed_idf(state_dict, prefix: str, ours: dict[str, Tensor]) -> None:
    """Replaces the counts of --superclip-idf FILE in the weights by those of this run, which may
    have none."""
    for name in [name for name in state_dict if name.startswith(prefix)]:
        del state_dict[name]
    state_dict.update({name: counts for name, counts in ours.items() if name.startswith(prefix)})
