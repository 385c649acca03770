"""The command that starts a node's ranks."""

import os
import re
import sys
from pathlib import Path

from .placement import Placement

ENGINES = ("torchrun", "horovod")


def engine_flags(engine: str, arguments: list[str]) -> list[str]:
    """Returns what an engine adds to the arguments of `superclip train`; InputError where it cannot train with them.

    Horovod's ranks are started by torchrun as well, which reaches every node without ssh or MPI and sees a rank fail.
    """
    if engine == "torchrun":
        return []
    from ..distributed.horovod_fixes import refuse_broken
    from ..integration.command_check import check_command

    refuse_broken(check_command(arguments))
    return ["--horovod"]


def torchrun_command(placement: Placement, num_processes: int, logs: Path, arguments: list[str]) -> list[str]:
    """Returns the torchrun command of this node.

    Args:
        placement: which of the nodes this is, and where rank 0 listens.
        num_processes: ranks of this node, one a GPU.
        logs: folder of the ranks' output and errors.
        arguments: those of `superclip train`.
    """
    where = ["--standalone"]  # finds a free port itself
    if placement.num_nodes > 1:
        where = [
            f"--nnodes={placement.num_nodes}", f"--node-rank={placement.node}",
            f"--master-addr={placement.master_addr}", f"--master-port={placement.master_port}",
        ]  # fmt: skip
    return [
        sys.executable, "-m", "torch.distributed.run", *where, f"--nproc-per-node={num_processes}",
        f"--log-dir={os.devnull}",  # or it leaves a folder in /tmp
        "-m", "openclip_superclip.running.rank_process", "--", str(logs), *arguments,
    ]  # fmt: skip


def killed_rank(output: str) -> tuple[str, str] | None:
    """Returns (rank, signal) where torchrun's output tells of a rank that was killed.

    Not of SIGTERM and SIGABRT, with which torchrun and NCCL end the ranks that are left.
    """
    for failure in re.split(r"^\[\d+\]:$", output, flags=re.MULTILINE):
        rank = re.search(r"^ +rank +: (\d+)", failure, flags=re.MULTILINE)
        signal = re.search(r"^ +traceback : (Signal \d+ \((?!SIGTERM|SIGABRT)\w+\))", failure, flags=re.MULTILINE)
        if rank and signal:
            return f"rank {rank[1]}", signal[1]
    return None
