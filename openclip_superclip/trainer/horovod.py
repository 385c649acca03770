"""Fixes for OpenCLIP's --horovod, so that it trains as with torchrun; checks.py refuses what cannot
be fixed.

Four functions of Horovod are replaced, and none of OpenCLIP. One of them also starts a process
group, from which the data loaders get their rank: WebDataset then splits the shards, and tables and
synthetic data use distributed samplers.
"""

import functools
import os
import socket
from datetime import timedelta

from ..environment import check_horovod
from ..errors import InputError, reason
from .parsed_options import launched

PATIENCE = timedelta(minutes=5)  # for the ranks to meet


def fix_horovod() -> None:
    """Replaces the functions of Horovod that make training differ from torch.distributed."""
    import horovod.torch as hvd

    for fixed in (_init, _allgather, _broadcast_object, _broadcast_optimizer_state):
        name = fixed.__name__.removeprefix("_")
        function = getattr(hvd, name)
        if not isinstance(function, functools.partial):
            setattr(hvd, name, functools.partial(fixed, function))


def _init(init, *args, **options) -> None:
    """Starts Horovod, and then a gloo process group of the same ranks."""
    init(*args, **options)
    import horovod.torch as hvd
    import torch.distributed as dist

    rank = hvd.rank()
    size = hvd.size()
    if "HOROVOD_GLOO_IFACE" in os.environ:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", os.environ["HOROVOD_GLOO_IFACE"])
    on_one_host = hvd.local_size() == size
    host = "127.0.0.1" if on_one_host else os.environ.get("MASTER_ADDR", socket.gethostname())
    store = None
    if rank == 0:
        store = dist.TCPStore(
            host, 0, size, is_master=True, timeout=PATIENCE, wait_for_workers=False
        )
    address = (host, store.port) if store else None
    host, port = hvd.broadcast_object(address, root_rank=0, name="the process group's store")
    try:
        store = store or dist.TCPStore(host, port, size, is_master=False, timeout=PATIENCE)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    except RuntimeError as error:
        raise InputError(
            f"--horovod: rank {rank} of {size}, on {socket.gethostname()}, cannot connect to "
            f"{host}: {reason(error)}; set MASTER_ADDR to an address of rank 0 that the others can "
            "reach, and HOROVOD_GLOO_IFACE to the network interface, such as eth0"
        ) from error


def _allgather(allgather, tensor, *args, **options):
    """Also gathers bfloat16, and sums the ranks' gradients, as torch.distributed does, instead of
    averaging.

    Horovod's optimizer averages once more; otherwise the gradient of gathered features would be
    scaled by 1 / size.
    """
    import horovod.torch as hvd
    import torch

    exact = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    gathered = allgather(exact, *args, **options)
    if gathered.requires_grad:
        gathered.register_hook(lambda gradient: gradient * hvd.size())
    return gathered.to(tensor.dtype)


def _broadcast_object(broadcast_object, obj, root_rank=0, name="object", **options):
    """Broadcasts under one name instead of the object's type, as OpenCLIP's `--resume latest` would
    deadlock.

    There rank 0 passes a file name, and the others pass None.
    """
    return broadcast_object(obj, root_rank, name, **options)


def _broadcast_optimizer_state(broadcast_optimizer_state, optimizer, *args, **options):
    """Skips a fresh optimizer: Horovod would make a step, which decays weights and advances
    Adam's counter."""
    if optimizer.state:
        broadcast_optimizer_state(optimizer, *args, **options)


_kept_open = []  # the stores and the rendezvous server of rank 0, kept alive with the process


def join_ranks() -> None:
    """Sets Horovod's variables if torchrun, srun or mpirun, and not horovodrun, started the
    processes.

    Collective. Raises InputError if the ranks cannot connect.
    """
    check_horovod()
    rank, size = launched()
    if size == 1 or "HOROVOD_RANK" in os.environ:
        return
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        raise InputError(
            f"--horovod: this is rank {rank} of {size}, and rank 0's address is unknown: set "
            "MASTER_ADDR (rank 0's host) and MASTER_PORT (a free port there), or start them "
            "with horovodrun"
        )
    os.environ.update(_meet(rank, size))


def _meet(rank: int, size: int) -> dict[str, str]:
    """Returns Horovod's variables for `rank` of `size`."""
    from horovod.runner.gloo_run import create_slot_env_vars
    from horovod.runner.http.http_server import RendezvousServer
    from torch.distributed import DistError, rendezvous

    master = os.environ["MASTER_ADDR"]
    try:
        store, _, _ = next(rendezvous("env://", rank, size, timeout=PATIENCE))
        store.set(f"host of {rank}", socket.gethostname())
        hosts = [
            name.decode() for name in store.multi_get([f"host of {other}" for other in range(size)])
        ]
        if rank == 0:
            server = RendezvousServer()
            port = server.start()
            server.init(slots(hosts))
            store.set("port", str(port))
            _kept_open.extend((store, server))
        return create_slot_env_vars(slots(hosts)[rank]) | {
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": socket.gethostbyname(master),
            "HOROVOD_GLOO_RENDEZVOUS_PORT": store.get("port").decode(),
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
        }
    except (DistError, OSError) as error:
        raise InputError(
            f"--horovod: rank {rank} of {size} cannot reach the others at MASTER_ADDR "
            f"{master}: {reason(error)}"
        ) from error


def slots(hosts: list[str]) -> list:
    """Returns each rank's SlotInfo, given the ranks' hosts: Horovod numbers the ranks of a host,
    and across hosts."""
    from horovod.runner.common.util.hosts import SlotInfo

    local_ranks = [hosts[:rank].count(host) for rank, host in enumerate(hosts)]
    return [
        SlotInfo(
            hostname=host,
            rank=rank,
            local_rank=local_rank,
            cross_rank=local_ranks[:rank].count(local_rank),
            size=len(hosts),
            local_size=hosts.count(host),
            cross_size=local_ranks.count(local_rank),
        )
        for rank, (host, local_rank) in enumerate(zip(hosts, local_ranks, strict=True))
    ]
