"""CLIP_benchmark's linear probe, on a GPU or without one."""

import torch
from clip_benchmark.metrics import linear_probe
from torch import Tensor, nn

from .replaced_names import replaced


def evaluate_probe(*args, device: str, **options) -> dict[str, float]:
    """Returns what CLIP_benchmark's `linear_probe.evaluate` returns, on the CPU as well.

    It asserts that it runs on a GPU, "else too slow", and moves what it makes there. A data set of some thousand
    pictures is not too slow: on the CPU all stays where it is.
    """
    if device == "cuda":
        return linear_probe.evaluate(*args, device=device, **options)
    autocast = torch.autocast

    def stay(moved: Tensor | nn.Module) -> Tensor | nn.Module:
        return moved

    with (
        replaced(Tensor, cuda=stay),
        replaced(nn.Module, cuda=stay),
        replaced(nn, DataParallel=lambda module, device_ids: module),
        replaced(torch, autocast=lambda device_type, **options: autocast(str(device_type), **options)),
    ):
        return linear_probe.evaluate(*args, device=_AcceptedCPU(device), **options)


class _AcceptedCPU(str):
    """The CPU's name, which also equals the one that CLIP_benchmark asserts."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return other in ("cuda", str(self))
