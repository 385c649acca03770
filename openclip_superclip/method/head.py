"""Weights with and without a class head, loaded by models with and without one."""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .loss import class_loss
from .word_knowledge import WordSums


class ClassHead(nn.Module):
    """LayerNorm and a linear map from the tower's width to the vocabulary (paper, section 3).

    It keeps the vocabulary logits to itself: called with captions it returns one loss each. Gains and biases are 1-d,
    so OpenCLIP does not decay them.

    Args:
        width: W, the width of the patch tokens.
        vocab_size: V, the number of token ids.
    """

    def __init__(self, width: int, vocab_size: int):
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.weight = nn.Parameter(torch.randn(vocab_size, width) * width**-0.5)  # [V, W]
        self.bias = nn.Parameter(torch.zeros(vocab_size))  # [V]

    def forward(
        self,
        patch_mean: Tensor,
        tokens: Tensor,
        idf: Tensor,
        scale: float | Tensor = 1.0,
        word_sums: WordSums | None = None,
    ) -> Tensor:
        """Returns `scale` times the class losses, float32 [B], of patch_mean [B, W], tokens [B, L] and idf [V]."""
        features = self._normalise(patch_mean)
        return class_loss(features, self.weight, self.bias, tokens, idf, scale, word_sums=word_sums)

    def logits(self, patch_mean: Tensor) -> Tensor:
        """Returns the vocabulary logits of patch tokens or their means: [..., W] to [..., V]."""
        features = self._normalise(patch_mean)
        return F.linear(features.to(self.weight.dtype), self.weight, self.bias)

    def _normalise(self, patch_mean: Tensor) -> Tensor:
        # In float32 whatever the model's precision: the mean of many tokens is the small difference of large numbers.
        return F.layer_norm(patch_mean.float(), self.ln.normalized_shape, self.ln.weight.float(), self.ln.bias.float())


FRESH_HEAD = "SuperCLIP: the weights hold no class head; a fresh one starts beside them"


def without_class_head(model_class: type) -> type:
    """Returns the class, of the same name, whose models leave a class head out of the weights that they load."""

    def __init__(self, *args, **kwargs):
        model_class.__init__(self, *args, **kwargs)
        self._register_load_state_dict_pre_hook(_leave_head_out)

    return type(model_class.__name__, (model_class,), {"__init__": __init__, "__module__": model_class.__module__})


def _leave_head_out(state_dict, prefix, *_) -> None:
    head = [name for name in state_dict if name.removeprefix(prefix).startswith(("class_head.", "statistics."))]
    for name in head:
        del state_dict[name]
    if head:
        logging.info("SuperCLIP: the weights bring a class head, which is left out without --superclip")


def keep_fresh_head(module, state_dict, prefix, *_) -> None:
    """Lets weights without a head load: what the head and the statistics hold now stays. The log says which it is."""
    _read_names(state_dict)
    ours = {f"{prefix}{k}": v for k, v in module.state_dict().items() if k.startswith(("class_head.", "statistics."))}
    kept_head, module.kept_head = module.kept_head or {}, None
    if not ours.keys() & state_dict.keys():
        state_dict.update({f"{prefix}{name}": tensor for name, tensor in kept_head.items()})
    if not ours.keys() & state_dict.keys():
        logging.info(FRESH_HEAD)
        state_dict.update(ours)
        return
    for name, tensor in ours.items():
        if name in state_dict and state_dict[name].shape != tensor.shape:
            found, expected = list(state_dict[name].shape), list(tensor.shape)
            raise InputError(f"the weights' class head is of another model: {name} is {found}, expected {expected}")
    if not {f"{prefix}statistics.num_captions", f"{prefix}statistics.document_frequency"} <= state_dict.keys():
        return  # torch names what is missing
    num_captions = state_dict[f"{prefix}statistics.num_captions"].item()
    _check_special_tokens(module, num_captions, state_dict[f"{prefix}statistics.document_frequency"])
    logging.info(f"SuperCLIP: the weights bring their class head, and the counts of {num_captions:,} captions")


def _read_names(state_dict) -> None:
    """Takes torch.compile's prefix off the names; InputError for weights of the authors' code."""
    for name in [name for name in state_dict if "_orig_mod." in name]:
        state_dict[name.replace("_orig_mod.", "")] = state_dict.pop(name)
    if any(name in state_dict for name in ("cap_fq", "text_decoder.ln_mlp.weight")):
        raise InputError(
            "these weights are a checkpoint of SuperCLIP's authors: superclip import FILE --model MODEL --out FOLDER "
            "makes it a folder, which --model local-dir:FOLDER opens"
        )


def _check_special_tokens(module, num_captions: int, document_frequency: Tensor) -> None:
    """Raises InputError where special tokens are words now but were none when these counts were made.

    Every caption holds the start token or the like: counted, it would have been counted in all.
    """
    if module.statistics.num_ignored == 0 and document_frequency.max() < num_captions:
        raise InputError(
            "--superclip-special-tokens: the counts in these weights leave special tokens out, which would then weigh "
            "most of all words: leave the flag out"
        )
