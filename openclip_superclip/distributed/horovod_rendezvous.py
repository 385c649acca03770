"""Makes Horovod ranks of the processes that torchrun, srun or mpirun started.

Horovod's own launcher reaches other nodes by ssh or MPI. These need neither; what they lack is Horovod's rendezvous,
which rank 0 then holds, and each rank's place, which follows from the hosts.
"""

import os
import socket
from datetime import timedelta

from ..errors import InputError
from ..optional_dependencies import check_horovod

PATIENCE = timedelta(minutes=5)  # for the ranks to meet
STARTED_BY_MPI = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")

_kept_open = []  # what the other ranks find at rank 0, for as long as the process lives


def join_ranks() -> None:
    """Sets Horovod's variables where this process is one of several that neither horovodrun nor MPI will join.

    Collective among them. Raises InputError where they do not find one another.
    """
    check_horovod()
    import horovod.torch as hvd

    rank, size = _started_as()
    by_mpi = hvd.mpi_built() and any(name in os.environ for name in STARTED_BY_MPI)
    if size == 1 or "HOROVOD_RANK" in os.environ or by_mpi:
        return
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        raise InputError(
            f"--horovod: this is rank {rank} of {size}, and nothing says where they meet: set MASTER_ADDR (rank 0's "
            "host) and MASTER_PORT (a free port there), or start them with horovodrun"
        )
    os.environ.update(_meet(rank, size))


def launched_rank() -> int:
    """Returns which of the ranks that were started this one is."""
    return int(os.environ.get("HOROVOD_RANK", _started_as()[0]))


def launched_size() -> int:
    """Returns how many ranks were started, this one among them."""
    return int(os.environ.get("HOROVOD_SIZE", _started_as()[1]))


def _started_as() -> tuple[int, int]:
    """Returns rank and number of ranks as torchrun, mpirun or srun tell them."""
    from open_clip_train.distributed import world_info_from_env

    if "OMPI_COMM_WORLD_RANK" in os.environ and "RANK" not in os.environ:  # SLURM's would be those of mpirun's daemons
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
    """Starts the server where Horovod's ranks find one another, and returns its port."""
    from horovod.runner.http.http_server import RendezvousServer

    server = RendezvousServer()
    _kept_open.append(server)
    port = server.start()
    server.init(slots(hosts))
    return port


def slots(hosts: list[str]) -> list:
    """Returns the place of each rank, Horovod's SlotInfo, given the ranks' hosts.

    A rank has a place among those of its host, and one among those that have the same place on theirs.
    """
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
