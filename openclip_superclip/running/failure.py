"""Which rank of a run failed first, and with what: told through files, for ranks die together and out of order."""

import contextlib
import json
import socket
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from ..atomic_files import write_json
from .rank_command import killed_rank


class Error(NamedTuple):
    """What one rank, or one node's launcher, says of its end."""

    who: str
    error: str  # one line
    traceback: str = ""
    time: float = 0.0
    is_cause: bool = False  # whether it cannot follow from another rank's end

    def write(self, path: Path) -> None:
        write_json(path, self._asdict())


def rank_failed(logs: Path) -> bool:
    """Tells whether a rank that this machine sees has written an error."""
    return any(logs.glob("rank_*.error.json"))


def node_failed(logs: Path) -> bool:
    """Tells whether a node has ended because of an error."""
    _look_again(logs)
    return any(logs.glob("node_*.error.json"))


def first_error(logs: Path) -> Error:
    """Returns the error that the others follow from: a rank that was killed, or else the earliest one."""
    _look_again(logs)
    return min(map(_read, logs.glob("*.error.json")), key=lambda error: (not error.is_cause, error.time))


def write_node_error(logs: Path, node: int, exit_code: int) -> None:
    """Writes why this node ended, where a killed rank could not."""
    host = socket.gethostname()
    output = (logs / f"node_{node}.log").read_text(errors="replace")
    killed = killed_rank(output)
    if killed:
        error = Error(f"{killed[0]} on {host}", f"it was ended from outside: {killed[1]}", "", time.time(), True)
    elif rank_failed(logs):
        error = first_error(logs)
    else:
        error = Error(f"the launcher on {host}", f"it ended with exit code {exit_code}", "", time.time())
    error.write(logs / f"node_{node}.error.json")


def describe(error: Error, logs: Path) -> str:
    """Returns what to print: the traceback first."""
    parts = [f"superclip run: {error.who} failed first:", error.traceback.rstrip() or error.error]
    return "\n".join([*parts, f"superclip run: the output of every rank is in {logs}"])


def _look_again(logs: Path) -> None:
    """Has NFS, which remembers for a minute what lies in a folder, ask for what other nodes have written there."""
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=logs):
        pass


def _read(path: Path) -> Error:
    return Error(**json.loads(path.read_text()))
