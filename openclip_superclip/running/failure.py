"""Which rank of a run failed first, and with which error: through files, for ranks die together and out of order."""

import contextlib
import json
import os
import re
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from ..atomic_files import write_json

# Kinds of failures. What is of none is the user's to mend.
LOSS = "loss"  # the training itself is ruined
HARDWARE = "hardware"  # a machine, a GPU or the network between them
STALL = "stall"  # nothing has failed, and nothing goes on
OF_HARDWARE = re.compile(
    r"NCCL|\bECC\b|[Uu]ncorrectable|NVLink|\bXid\b|[Bb]us error|SIGBUS|unspecified launch failure|"
    r"CUDA error: (unknown error|an illegal memory access)|DistBackendError|DistNetworkError|"
    r"Connection (closed|reset|refused)|Broken pipe|Input/output error|Stale file handle|EADDRINUSE|Timed? ?out"
)


class Failure(NamedTuple):
    """How one rank, or one node's launcher, ended; its file is one that torch.distributed.elastic reads too."""

    who: str  # "" where it is the same on all ranks
    message: str  # one line
    traceback: str = ""
    timestamp: float = 0.0
    is_cause: bool = False  # whether it cannot follow from another rank's end
    kind: str = ""
    host: str = ""  # as SLURM names it

    @property
    def text(self) -> str:
        """What happened, and to whom."""
        return f"{self.who}: {self.message}" if self.who else self.message

    def write(self, path: Path) -> None:
        write_json(path, self._asdict())

    @staticmethod
    def read(path: Path) -> "Failure":
        return Failure(**json.loads(path.read_text()))

    def order(self) -> tuple[bool, float]:
        """Returns what sorts failures, the one that the others follow from first."""
        return not self.is_cause, self.timestamp


def kind_of(message: str) -> str:
    """Returns HARDWARE where an error's message is one of machines, "" where it is not."""
    return HARDWARE if OF_HARDWARE.search(message) else ""


def this_host() -> str:
    """Returns the name of this machine, as SLURM knows it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def rank_failed(logs: Path) -> bool:
    """Returns whether a rank that this machine sees has written a failure."""
    return any(logs.glob("rank_*.error.json"))


def node_failed(logs: Path) -> bool:
    """Returns whether a node has ended because of a failure."""
    _look_again(logs)
    return any(logs.glob("node_*.error.json"))


def first_failure(logs: Path) -> Failure:
    """Returns the failure that the others follow from: of a rank that was killed, or else the earliest one."""
    _look_again(logs)
    return min(map(Failure.read, logs.glob("*.error.json")), key=Failure.order)


def launcher_file(logs: Path, node: int) -> Path:
    """Returns where a node's launcher writes what it saw of its ranks' end, for this node alone to read."""
    return logs / f"launcher_{node}.json"


def write_node_failure(logs: Path, node: int, exit_code: int) -> None:
    """Tells all nodes why this one ended, in the words of its launcher where it left any."""
    seen = launcher_file(logs, node)
    if seen.exists():
        failure = Failure.read(seen)
    elif rank_failed(logs):
        failure = first_failure(logs)
    else:
        who = f"the launcher on {socket.gethostname()}"
        killed = exit_code == -signal.SIGKILL  # as the kernel does where memory is short
        failure = Failure(
            who, f"it ended with exit code {exit_code}", timestamp=time.time(), kind=HARDWARE if killed else "",
            host=this_host(),
        )  # fmt: skip
    failure.write(logs / f"node_{node}.error.json")


def describe(failure: Failure, logs: Path) -> str:
    """Returns what to print: the traceback first."""
    parts = [failure.traceback.rstrip() or failure.message]
    if failure.who:
        parts.insert(0, f"superclip run: {failure.who} failed first:")
    return "\n".join([*parts, f"superclip run: the output of every rank is in {logs}"])


def _look_again(logs: Path) -> None:
    """Has NFS, which remembers for a minute what lies in a folder, ask for what other nodes have written there."""
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=logs):
        pass
