"""Heartbeats between the nodes of a run, through files: they tell a lost node from a failed run."""

import contextlib
import time
from pathlib import Path

PERIOD = 2  # seconds between two beats
PATIENCE = 20  # seconds after which a node without a beat is lost


class Heartbeat:
    """Writes this node's heartbeat and watches the others'.

    Where a node loses power, the ranks of the others fail within seconds, and SLURM takes minutes to notice. A failed
    run is over, a lost node is SLURM's to replace.
    """

    def __init__(self, logs: Path, node: int, num_nodes: int):
        self.logs, self.node, self.num_nodes = logs, node, num_nodes
        self.last = 0.0

    def beat(self) -> None:
        """Writes this node's heartbeat, every few seconds."""
        now = time.monotonic()
        if self.num_nodes > 1 and now - self.last >= PERIOD:
            self.last = now
            self._write(str(now))

    def end(self) -> None:
        """Records that this node ends normally."""
        if self.num_nodes > 1:
            self._write("ended")

    def lost_nodes(self) -> list[int]:
        """Returns the nodes whose heartbeats have stopped."""
        heard = {node: self._read(node) for node in range(self.num_nodes) if node != self.node}
        silent = [node for node, beat in heard.items() if beat != "ended"]
        deadline = time.monotonic() + PATIENCE
        while silent and time.monotonic() < deadline:
            self.beat()  # the others may be listening too
            time.sleep(0.5)
            silent = [node for node in silent if self._read(node) == heard[node]]
        return silent

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # on a full disk, of which the rank that fills it tells
            self._file(self.node).write_text(text)

    def _file(self, node: int) -> Path:
        return self.logs / f"node_{node}.beat"

    def _read(self, node: int) -> str:
        try:
            return self._file(node).read_text()
        except FileNotFoundError:
            return ""
