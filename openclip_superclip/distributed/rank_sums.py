"""The ranks that train together: Horovod's where it runs, or else torch.distributed's."""

import sys

import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Returns how many ranks train together, 1 for a process alone."""
    horovod = _horovod()
    if horovod is not None:
        return horovod.size()
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def begin_sum(tensor: Tensor, name: str):
    """Starts to sum `tensor` over the ranks, in place; what it returns has a `wait()` that ends when the sum is there.

    Collective. `name` tells it from other sums that may be under way.
    """
    horovod = _horovod()
    if horovod is not None:
        return _HorovodSum(horovod, horovod.allreduce_async_(tensor, name=name, op=horovod.Sum))
    return dist.all_reduce(tensor, async_op=True)


class _HorovodSum:
    def __init__(self, horovod, handle: int):
        self.horovod = horovod
        self.handle = handle

    def wait(self) -> None:
        self.horovod.synchronize(self.handle)


def _horovod():
    """Returns horovod.torch where it has been started; OpenCLIP imports it wherever it is installed."""
    horovod = sys.modules.get("horovod.torch")
    return horovod if horovod is not None and horovod.is_initialized() else None
