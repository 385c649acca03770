"""Whether a class head fits a model."""

import torch
from torch import Tensor, nn

from ..method.class_head import ClassHead
from ..method.patch_tokens import patch_tokens
from ..method.token_statistics import TokenStatistics
from .weights_check import check_match


def check_head(head: dict[str, Tensor], model: nn.Module, what: str, name: str) -> None:
    """Raises InputError, with both shapes, unless `head` is one of `model`, a plain one of OpenCLIP's."""
    check_match(head, expected_head(model), f"{what}: the class head", name)


def expected_head(model: nn.Module) -> dict[str, Tensor]:
    """Returns the class head and the counts that a plain model of OpenCLIP's would have, without memory."""
    vocab_size = getattr(model, "vocab_size", None) or model.text.vocab_size
    with torch.device("meta"):
        parts = {
            "class_head": ClassHead(patch_tokens(model.visual).width, vocab_size),
            "statistics": TokenStatistics(vocab_size),
        }
    return {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}
