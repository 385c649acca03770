"""Sums over the ranks, and DistributedDataParallel with fixed gradient buckets.

torch rebuilds the buckets after the first step of a process, in the order in which the gradients
were computed. With three or more ranks, rounding depends on the position of a gradient in its
bucket: the first step of a resumed run would differ in the last bits from that of an uninterrupted
run.
"""

import functools
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor
from torch.nn.parallel.distributed import DistributedDataParallel


@torch.compiler.assume_constant_result
def world_size() -> int:
    """Returns the number of ranks, 1 for a single process."""
    horovod = _horovod()
    if horovod is not None:
        return horovod.size()
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def begin_sum(tensor: Tensor, name: str) -> Callable[[], Tensor]:
    """Starts a sum of `tensor` over the ranks; returns a function that waits for it and returns it.

    Collective. `name` distinguishes it from other sums in progress. torch.compile traces it, except
    with Horovod.
    """
    if world_size() == 1:
        return lambda: tensor
    horovod = _horovod()
    if horovod is not None:
        return functools.partial(
            horovod.synchronize, horovod.allreduce_async_(tensor, name=name, op=horovod.Sum)
        )
    return functools.partial(funcol.wait_tensor, funcol.all_reduce(tensor, "sum", dist.group.WORLD))


@torch.compiler.assume_constant_result
def _horovod():
    """Returns horovod.torch if it is initialized; OpenCLIP imports it if it is installed."""
    horovod = sys.modules.get("horovod.torch")
    return horovod if horovod is not None and horovod.is_initialized() else None


_original = DistributedDataParallel.__init__, DistributedDataParallel._build_params_for_reducer


def fix_buckets(*, fixed: bool) -> None:
    """Makes DistributedDataParallel keep its initial buckets, or rebuild them as torch does.

    Changes torch's own class, so that it does not matter which subclasses replace it, or when.
    """
    methods = (_init_with_final_buckets, _last_parameters_first) if fixed else _original
    DistributedDataParallel.__init__, DistributedDataParallel._build_params_for_reducer = methods


def _init_with_final_buckets(self, *args, **kwargs):
    _original[0](self, *args, **kwargs)
    # As if every gradient were ready, in parameter order: torch builds its final buckets now.
    self.reducer._push_all_rebuilt_params()
    self.reducer._rebuild_buckets()


def _last_parameters_first(self):
    parameters, are_sparse = _original[1](self)
    # last gradients first: sums overlap with the backward
    return parameters[::-1], are_sparse[::-1]
