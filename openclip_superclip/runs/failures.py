"""Failures of a run: their kinds, which of them came first, and what to print."""

import contextlib
import re
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from ..files import read_json, write_json
from .slurm import this_host

# Kinds of failures. The user must fix those without a kind.
LOSS = "loss"  # not finite
HARDWARE = "hardware"  # a machine, a GPU or the network between them
STALL = "stall"  # no progress
OF_HARDWARE = re.compile(
    r"NCCL|\bECC\b|[Uu]ncorrectable|NVLink|\bXid\b|[Bb]us error|SIGBUS|unspecified launch failure|"
    r"CUDA error: (unknown error|an illegal memory access)|DistBackendError|DistNetworkError|"
    r"Connection (closed|reset|refused)|Broken pipe|Input/output error|Stale file handle|EADDRINUSE|Timed? ?out"
)


class Failure(NamedTuple):
    """How a rank, or `superclip run` on a node, has failed."""

    who: str  # "" if it is the same on all ranks
    message: str  # one line
    traceback: str = ""
    timestamp: float = 0.0
    is_cause: bool = False  # whether another rank's end cannot have caused it
    kind: str = ""
    host: str = ""  # SLURM's name

    @property
    def text(self) -> str:
        """What happened, and to which rank."""
        return f"{self.who}: {self.message}" if self.who else self.message

    def write(self, path: Path) -> None:
        write_json(path, self._asdict())

    @staticmethod
    def read(path: Path) -> "Failure":
        return Failure(**read_json(path))

    def order(self) -> tuple[bool, float]:
        """Returns the sort key of failures: the one that caused the others comes first."""
        return not self.is_cause, self.timestamp


def failure_here(who: str, message: str, traceback: str = "", kind: str = "") -> Failure:
    """Returns a failure on this machine, now."""
    return Failure(f"{who} on {socket.gethostname()}", message, traceback, time.time(), kind=kind, host=this_host())


def rank_failure(logs: Path, rank: int, exit_code: int) -> Failure:
    """Returns the failure that a rank of this node has written, or that its exit code shows."""
    if (file := logs / f"rank_{rank}.error.json").exists():
        return Failure.read(file)
    if exit_code > 0:
        return failure_here(f"rank {rank}", f"it ended with exit code {exit_code}")
    name = f"Signal {-exit_code} ({signal.Signals(-exit_code).name})"
    if -exit_code in (signal.SIGTERM, signal.SIGABRT):  # of NCCL's watchdog, or because a GPU has failed
        kind = HARDWARE if -exit_code == signal.SIGABRT else ""
        return failure_here(f"rank {rank}", f"it was ended by {name}", kind=kind)
    return failure_here(f"rank {rank}", f"it was ended from outside: {name}", kind=HARDWARE)._replace(is_cause=True)


def node_failed(logs: Path) -> bool:
    """Returns whether a node other than the first has ended because of a failure."""
    refresh(logs)
    return any(file.name != "node_0.error.json" for file in logs.glob("node_*.error.json"))


def first_failure(logs: Path) -> Failure:
    """Returns the failure that caused the others: of a killed rank, or else the earliest one."""
    refresh(logs)
    return min(map(Failure.read, logs.glob("*.error.json")), key=Failure.order)


def describe(failure: Failure, logs: Path) -> str:
    """Returns what to print: the traceback first."""
    parts = [failure.traceback.rstrip() or failure.message]
    if failure.who:
        parts.insert(0, f"superclip run: {failure.who} failed first:")
    return "\n".join([*parts, f"superclip run: the output of every rank is in {logs}"])


def refresh(logs: Path) -> None:
    """Makes NFS, which caches the list of a folder's files for a minute, look for new files of other nodes."""
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=logs):
        pass
