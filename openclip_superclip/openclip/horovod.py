"""Fixes for OpenCLIP's --horovod, so that it trains as with torchrun; other problems are errors with a reason.

Four functions of Horovod are replaced, and none of OpenCLIP. One of them also starts a process group, from which the
data loaders get their rank: WebDataset then splits the shards, and tables and synthetic data use distributed samplers.
"""

import argparse
import functools
import os
import socket
from datetime import timedelta

from ..environment import check_horovod
from ..errors import InputError
from ..rules import Rule, check

PATIENCE = timedelta(minutes=5)  # for the ranks to meet


BROKEN = [  # of OpenCLIP's options
    Rule("--horovod: OpenCLIP's SigLIP loss cannot go with it: start the run with torchrun", lambda o: o.siglip),
    Rule(
        "--horovod: --accum-freq {accum_freq} cannot go with it, Horovod's optimizer takes one backward pass a step: "
        "use more ranks, or a larger --batch-size with --grad-checkpointing",
        lambda o: o.accum_freq > 1,
    ),
    Rule(
        "--horovod: Horovod has no bfloat16 weights, which --precision {precision} makes: use amp_bf16 or amp",
        lambda o: o.precision in ("bf16", "pure_bf16"),
    ),
    Rule(
        "--horovod: --grad-clip-norm with --precision {precision} clips each rank's gradient before they are averaged, "
        "and the ranks' weights drift apart: leave it out, or use --precision amp",
        lambda o: o.grad_clip_norm is not None and o.precision != "amp",
    ),
    Rule("--horovod: --use-bn-sync does nothing with it: leave it out", lambda o: o.use_bn_sync),
]


def refuse_broken(options: dict) -> None:
    """Raises InputError, with a suggestion, for an OpenCLIP option that does not work with --horovod."""
    check(BROKEN, argparse.Namespace(**options))


def fix_horovod() -> None:
    """Replaces the functions of Horovod that make training differ from torch.distributed."""
    import horovod.torch as hvd

    for name, fixed in FIXED.items():
        function = getattr(hvd, name)
        if not isinstance(function, functools.partial):
            setattr(hvd, name, functools.partial(fixed, function))


def _init(init, *args, **options) -> None:
    """Starts Horovod, and then a torch.distributed process group of the same ranks."""
    init(*args, **options)
    start_process_group()


def _allgather(allgather, tensor, *args, **options):
    """Also gathers bfloat16, and sums the ranks' gradients, as torch.distributed does, instead of averaging.

    Horovod's optimizer averages once more; otherwise the gradient of gathered features would be scaled by 1 / size.
    """
    import horovod.torch as hvd
    import torch

    exact = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    gathered = allgather(exact, *args, **options)
    if gathered.requires_grad:
        gathered.register_hook(lambda gradient: gradient * hvd.size())
    return gathered.to(tensor.dtype)


def _broadcast_object(broadcast_object, obj, root_rank=0, name="object", **options):
    """Broadcasts under one name instead of the object's type, as OpenCLIP's `--resume latest` would deadlock.

    There rank 0 passes a file name, and the others pass None.
    """
    return broadcast_object(obj, root_rank, name, **options)


def _broadcast_optimizer_state(broadcast_optimizer_state, optimizer, *args, **options):
    """Skips a fresh optimizer: Horovod would make a step, which decays weights and advances Adam's counter."""
    if optimizer.state:
        broadcast_optimizer_state(optimizer, *args, **options)


FIXED = {
    "init": _init,
    "allgather": _allgather,
    "broadcast_object": _broadcast_object,
    "broadcast_optimizer_state": _broadcast_optimizer_state,
}


def start_process_group() -> None:
    """Starts a gloo process group of Horovod's ranks.

    Collective, after Horovod's start. Raises InputError if the ranks cannot connect.
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
    """Returns the address at which other machines reach this one: the interface's, if given."""
    import psutil

    addresses = psutil.net_if_addrs().get(interface, [])
    return next((entry.address for entry in addresses if entry.family == socket.AF_INET), socket.gethostname())


STARTED_BY_MPI = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")
_kept_open = []  # the rendezvous server of rank 0, kept alive with the process


def join_ranks() -> None:
    """Sets Horovod's variables if neither horovodrun nor MPI started the processes.

    Collective. Raises InputError if the ranks cannot connect.
    """
    check_horovod()
    import horovod.torch as hvd

    rank, size = _started_as()
    by_mpi = hvd.mpi_built() and any(name in os.environ for name in STARTED_BY_MPI)
    if size == 1 or "HOROVOD_RANK" in os.environ or by_mpi:
        return
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        raise InputError(
            f"--horovod: this is rank {rank} of {size}, and their meeting point is unknown: set MASTER_ADDR (rank 0's "
            "host) and MASTER_PORT (a free port there), or start them with horovodrun"
        )
    os.environ.update(_meet(rank, size))


def launched_rank() -> int:
    """Returns the rank of this process, from the launcher."""
    return int(os.environ.get("HOROVOD_RANK", _started_as()[0]))


def launched_size() -> int:
    """Returns the number of ranks, from the launcher."""
    return int(os.environ.get("HOROVOD_SIZE", _started_as()[1]))


def _started_as() -> tuple[int, int]:
    """Returns rank and number of ranks from the variables of torchrun, mpirun or srun."""
    from open_clip_train.distributed import world_info_from_env

    if "OMPI_COMM_WORLD_RANK" in os.environ and "RANK" not in os.environ:  # SLURM's variables are wrong here
        return int(os.environ["OMPI_COMM_WORLD_RANK"]), int(os.environ["OMPI_COMM_WORLD_SIZE"])
    _, rank, size = world_info_from_env()
    return rank, size


def _meet(rank: int, size: int) -> dict[str, str]:
    """Returns Horovod's variables for `rank` of `size`."""
    from horovod.runner.gloo_run import create_slot_env_vars
    from torch.distributed import DistError, rendezvous

    master = os.environ["MASTER_ADDR"]
    try:
        store, _, _ = next(rendezvous("env://", rank, size, timeout=PATIENCE))
        store.set(f"host of {rank}", socket.gethostname())
        hosts = [name.decode() for name in store.multi_get([f"host of {other}" for other in range(size)])]
        if rank == 0:
            store.set("port", str(_start_rendezvous(hosts)))
            _kept_open.append(store)
        return create_slot_env_vars(slots(hosts)[rank]) | {
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": socket.gethostbyname(master),
            "HOROVOD_GLOO_RENDEZVOUS_PORT": store.get("port").decode(),
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
        }
    except (DistError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"--horovod: rank {rank} of {size} does not meet the others at MASTER_ADDR {master}: {reason}"
        ) from error


def _start_rendezvous(hosts: list[str]) -> int:
    """Starts Horovod's rendezvous server and returns its port."""
    from horovod.runner.http.http_server import RendezvousServer

    server = RendezvousServer()
    _kept_open.append(server)
    port = server.start()
    server.init(slots(hosts))
    return port


def slots(hosts: list[str]) -> list:
    """Returns each rank's SlotInfo, given the ranks' hosts: Horovod numbers the ranks of a host, and across hosts."""
    from horovod.runner.common.util.hosts import SlotInfo

    places = [hosts[:rank].count(host) for rank, host in enumerate(hosts)]
    return [
        SlotInfo(
            hostname=host,
            rank=rank,
            local_rank=place,
            cross_rank=places[:rank].count(place),
            size=len(hosts),
            local_size=hosts.count(host),
            cross_size=places.count(place),
        )
        for rank, (host, place) in enumerate(zip(hosts, places, strict=True))
    ]
