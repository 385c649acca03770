"""The ranks of a run on this node: started, watched, and missed where another node is lost."""

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .failure import write_node_failure
from .heartbeat import Heartbeat
from .placement import Placement, hosts
from .staging import Staging
from .stopped_ranks import StoppedRanks
from .supervised_process import run_to_end


class NodeLost(Exception):
    """The heartbeats of a node have stopped."""


class NodeRanks:
    """So many processes that train with the same arguments of `superclip train`, their logs in one folder."""

    def __init__(
        self, placement: Placement, num_processes: int, logs: Path, arguments: list[str], staging: Staging | None = None
    ):
        self.placement, self.num_processes, self.logs, self.arguments = placement, num_processes, logs, arguments
        self.staging = staging
        self.heartbeat = Heartbeat(logs, placement.node, placement.num_nodes)
        self.stopped = StoppedRanks(logs, placement.node, num_processes)

    def command(self) -> list[str]:
        """Returns the command that starts them."""
        where = []
        if self.placement.num_nodes > 1:
            where = [
                f"--nnodes={self.placement.num_nodes}", f"--node-rank={self.placement.node}",
                f"--master-addr={self.placement.master_addr}", f"--master-port={self.placement.master_port}",
            ]  # fmt: skip
        launcher = [sys.executable, "-m", "openclip_superclip.running.rank_launcher"]
        return [
            *launcher,
            *where,
            f"--nproc-per-node={self.num_processes}",
            f"--logs={self.logs}",
            "--",
            *self.arguments,
        ]

    def run(self, each_second: Callable[[], None], make_room: Callable[[], None] = lambda: None) -> int:
        """Runs them to their end and returns the launcher's exit code; 0 is success.

        Where shards are staged, those of the first slice are copied before. Where the ranks failed, makes room for what
        tells of it on a disk that may be full; raises NodeLost where another node is silent.
        """

        def tick():
            self.heartbeat.beat()
            self.stopped.look()
            each_second()

        self.logs.mkdir(parents=True, exist_ok=True)
        try:
            with self.staging or contextlib.nullcontext():
                while self.staging and not self.staging.is_ready():
                    tick()
                    time.sleep(0.5)
                code = run_to_end(self.command(), self.logs / f"node_{self.placement.node}.log", tick)
            if code:
                make_room()
                if lost := self.lost_nodes():
                    raise NodeLost(f"lost contact with {lost}")
                write_node_failure(self.logs, self.placement.node, code)
            return code
        finally:
            self.heartbeat.end()

    def lost_nodes(self) -> str:
        """Returns the names of the nodes whose heartbeats have stopped, "" where there is none."""
        return ", ".join(map(self._name, self.heartbeat.lost_nodes()))

    def _name(self, node: int) -> str:
        names = hosts()
        return names[node] if len(names) == self.placement.num_nodes else f"node {node}"
