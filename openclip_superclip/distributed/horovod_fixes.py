"""Fixes for OpenCLIP's --horovod, so that it trains as torchrun does; what cannot be fixed is refused with a reason.

Nothing of OpenCLIP is replaced. Four functions of Horovod are. One of them starts a process group beside it, which
tells the data loaders their rank: WebDataset then splits the shards, and tables and synthetic data have samplers.
"""

import functools
import os
import socket
from datetime import timedelta

from ..errors import InputError

PATIENCE = timedelta(minutes=5)  # for the ranks to meet


def refuse_broken(options: dict) -> None:
    """Raises InputError, with what to do instead, for an OpenCLIP option that does not work with --horovod.

    Args:
        options: of OpenCLIP's parsed command line, under their names.
    """
    if options["siglip"]:
        raise InputError("--horovod: OpenCLIP's SigLIP loss cannot go with it: start the run with torchrun instead")
    accum_freq, precision = options["accum_freq"], options["precision"]
    if accum_freq > 1:
        raise InputError(
            f"--horovod: --accum-freq {accum_freq} cannot go with it, Horovod's optimizer takes one backward pass "
            "a step: use more ranks, or a larger --batch-size with --grad-checkpointing"
        )
    if precision in ("bf16", "pure_bf16"):
        raise InputError(
            f"--horovod: Horovod has no bfloat16 weights, which --precision {precision} makes: use amp_bf16 or amp"
        )
    if options["grad_clip_norm"] is not None and precision != "amp":
        raise InputError(
            f"--horovod: --grad-clip-norm with --precision {precision} clips each rank's gradient before they are "
            "averaged, and the ranks' weights drift apart: leave it out, or use --precision amp"
        )
    if options["use_bn_sync"]:
        raise InputError("--horovod: --use-bn-sync does nothing with it: leave it out")


def fix_horovod() -> None:
    """Replaces the functions of Horovod that keep OpenCLIP from training as it does with torch.distributed."""
    import horovod.torch as hvd

    for name, fixed in FIXED.items():
        function = getattr(hvd, name)
        if not isinstance(function, functools.partial):
            setattr(hvd, name, functools.partial(fixed, function))


def _init(init, *args, **options) -> None:
    """Starts Horovod, and then torch.distributed's process group of the same ranks."""
    init(*args, **options)
    start_process_group()


def _allgather(allgather, tensor, *args, **options):
    """Gathers bfloat16 as well, and gives the sum of the ranks' gradients, as torch.distributed does, not their mean.

    DDP and Horovod's optimizer then take the mean of a sum; of a mean, the share of the gathered features would be
    1 / size too small.
    """
    import horovod.torch as hvd
    import torch

    exact = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    gathered = allgather(exact, *args, **options)
    if gathered.requires_grad:
        gathered.register_hook(lambda gradient: gradient * hvd.size())
    return gathered.to(tensor.dtype)


def _broadcast_object(broadcast_object, obj, root_rank=0, name="object", **options):
    """Broadcasts under one name, not that of the object's type, which differs where only rank 0 has something to say.

    OpenCLIP's `--resume latest` would wait forever: rank 0 has found a file and the others have None.
    """
    return broadcast_object(obj, root_rank, name, **options)


def _broadcast_optimizer_state(broadcast_optimizer_state, optimizer, *args, **options):
    """Leaves a fresh optimizer alone, whose state is the same everywhere: none.

    Horovod would make one with a step, which decays the weights and counts in Adam's bias correction.
    """
    if optimizer.state:
        broadcast_optimizer_state(optimizer, *args, **options)


FIXED = {
    "init": _init,
    "allgather": _allgather,
    "broadcast_object": _broadcast_object,
    "broadcast_optimizer_state": _broadcast_optimizer_state,
}


def start_process_group() -> None:
    """Starts torch.distributed's gloo group of Horovod's ranks. Collective; Horovod has been started.

    Raises InputError where they do not reach one another.
    """
    import horovod.torch as hvd
    import torch.distributed as dist

    rank, size = hvd.rank(), hvd.size()
    interface = os.environ.get("HOROVOD_GLOO_IFACE")
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    host = "127.0.0.1" if hvd.local_size() == size else _own_address(interface)
    store = None
    if rank == 0:
        store = dist.TCPStore(host, 0, size, is_master=True, timeout=PATIENCE, wait_for_workers=False)
    place = (host, store.port) if store else None
    host, port = hvd.broadcast_object(place, root_rank=0, name="the process group's store")
    try:
        store = store or dist.TCPStore(host, port, size, is_master=False, timeout=PATIENCE)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"--horovod: rank {rank} of {size}, on {socket.gethostname()}, does not reach the others by way of {host}: "
            f"{reason}; HOROVOD_GLOO_IFACE names the network interface to use, such as eth0"
        ) from error


def _own_address(interface: str | None) -> str:
    """Returns where other machines reach this one: on the interface, where there is one of this name."""
    import psutil

    addresses = psutil.net_if_addrs().get(interface, [])
    return next((entry.address for entry in addresses if entry.family == socket.AF_INET), socket.gethostname())
