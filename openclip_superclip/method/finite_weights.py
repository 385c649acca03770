"""Finds NaN and infinity in weights."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from . import distributed


def is_finite(tensor: Tensor) -> bool:
    """Returns whether all values are finite, without allocating a mask."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.element_size() == 1:  # aminmax does not support float8
        tensor = tensor.float()
    return all(bound.isfinite() for bound in tensor.aminmax())  # NaN propagates to both bounds


def first_non_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Returns the name of the first tensor with NaN or infinity, or None.

    FSDP's shards are left out."""
    whole = ((name, tensor) for name, tensor in tensors if not hasattr(tensor, "to_local"))
    return next((name for name, tensor in whole if not is_finite(tensor.detach())), None)


def is_finite_on_all_ranks(model: nn.Module, device: str) -> bool:
    """Returns whether the parameters and buffers that a checkpoint contains are finite.

    `device` is that of the training: FSDP may keep weights on the CPU. Collective: each rank may
    have only a shard of them, and all return the same, so that none waits for another one that has
    stopped.
    """
    tensors = [tensor.detach() for tensor in model.state_dict().values()]
    local = (tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors)
    num_bad = torch.tensor(int(not all(map(is_finite, local))), device=device)
    return not distributed.begin_sum(num_bad, "superclip.non_finite")()
