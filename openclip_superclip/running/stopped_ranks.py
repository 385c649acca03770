"""Ranks that stand still because a signal has stopped them: they live, hold their GPU, and all others wait for them."""

import contextlib
import socket
from pathlib import Path

from ..atomic_files import write_text


def pid_file(logs: Path, rank: int) -> Path:
    """Returns where a rank writes the number of its process."""
    return logs / f"rank_{rank}.pid"


def find_stopped(logs: Path, ranks: range) -> list[str]:
    """Returns a line for each of this machine's ranks that is stopped."""
    lines = []
    for rank in ranks:
        with contextlib.suppress(OSError, ValueError):  # it has not begun, or has ended
            process = int(pid_file(logs, rank).read_text())
            # "PID (name) STATE …", and the name may hold parentheses
            state = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][:1]
            if state in ("T", "t"):
                where = f"process {process} on {socket.gethostname()}"
                lines.append(f"rank {rank} is stopped by a signal ({where}): kill -CONT {process} lets it go on")
    return lines


class StoppedRanks:
    """Tells the run's first node which ranks of every node are stopped."""

    def __init__(self, logs: Path, node: int, num_processes: int):
        self.logs, self.file = logs, logs / f"node_{node}.stopped"
        self.ranks = range(node * num_processes, (node + 1) * num_processes)
        self.told: list[str] = []

    def look(self) -> None:
        """Looks at this node's ranks."""
        found = find_stopped(self.logs, self.ranks)
        if found != self.told:
            with contextlib.suppress(OSError):  # on a full disk
                write_text(self.file, "\n".join(found))
                self.told = found

    def of_all_nodes(self) -> list[str]:
        """Returns the lines of all nodes."""
        return [line for file in sorted(self.logs.glob("node_*.stopped")) for line in file.read_text().splitlines()]
