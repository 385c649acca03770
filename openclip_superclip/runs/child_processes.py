"""The ranks of a run as child processes: how they start and end."""

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..files import read_json, write_json
from ..plans.run import Run
from .recovery import Failure

EXIT_PATIENCE = 10  # seconds until ranks that do not end are killed
LOOKS = 10  # in a second, for ranks that have ended
STALLED = re.compile(r"^Timeout \(.*\)!$", re.MULTILINE)  # of a rank that faulthandler has ended


@dataclass(frozen=True)
class Start:
    """The start parameters of the ranks of one node: LOGS/node_N.json."""

    run: Run
    logs: Path
    arguments: list[str]  # of `superclip train`
    node: int
    master_addr: str
    master_port: int
    measures: bool  # whether the ranks measure their memory, for a rehearsal
    launcher: int = field(default_factory=os.getpid)  # the process with which the ranks end

    @property
    def file(self) -> Path:
        return self.logs / f"node_{self.node}.json"

    @property
    def ranks(self) -> range:
        """The ranks of this node."""
        first = self.node * self.run.gpus_per_node
        return range(first, first + self.run.gpus_per_node)

    def save(self) -> None:
        write_json(self.file, {**vars(self), "run": self.run.as_json(), "logs": str(self.logs)})

    @staticmethod
    def open(file: str) -> "Start":
        values = read_json(Path(file))
        values |= {"run": Run.of_json(values["run"], file), "logs": Path(values["logs"])}
        return Start(**values)


def run_ranks(start: Start, each_second: Callable[[], None]) -> list[Failure]:
    """Runs this node's ranks to their end, and returns the failures, which are also written; none
    if all succeeded.

    If one fails, or `each_second` raises an exception, all are ended.
    """
    processes: dict[int, subprocess.Popen] = {}
    last_seen = time.time()  # when all of them still ran
    try:
        for rank in start.ranks:
            processes[rank] = _start_rank(start, rank)
        for look in itertools.count():
            now = time.time()
            codes = {rank: process.poll() for rank, process in processes.items()}
            if any(codes.values()):
                failed = {rank: code for rank, code in codes.items() if code}
                return [_failure(start, rank, code, last_seen) for rank, code in failed.items()]
            if None not in codes.values():
                return []
            last_seen = now
            if look % LOOKS == 0:
                each_second()
            time.sleep(1 / LOOKS)
    finally:
        _end(processes.values())


def _failure(start: Start, rank: int, exit_code: int, last_seen: float) -> Failure:
    """Returns the failure that a rank has written or, for one that could not, writes what its
    exit code shows, with the last time at which it ran: it precedes what it causes elsewhere."""
    file = start.logs / f"rank_{rank}.error.json"
    if file.exists():
        return Failure.read(file)
    log = start.logs / f"rank_{rank}.log"
    if exit_code < 0:
        message = f"ended by signal {-exit_code} ({signal.strsignal(-exit_code)})"
    elif STALLED.search(log.read_text(errors="replace")):
        message = f"no step for {start.run.settings.stall_minutes:g} minutes"
    else:
        message = f"exit code {exit_code}: {last_line(log)}"
    failure = Failure(f"rank {rank}", message, timestamp=last_seen)
    with contextlib.suppress(OSError):  # on a full disk
        failure.write(file)
    return failure


def _start_rank(start: Start, rank: int) -> subprocess.Popen:
    """Starts a rank in a session of its own, which signals of a terminal do not reach; its
    output goes into a file."""
    environment = {
        **({"OMP_NUM_THREADS": "1"} if start.run.gpus_per_node > 1 else {}),  # as torchrun does
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(start.run.world_size),
        "LOCAL_RANK": str(rank - start.ranks[0]),
        "LOCAL_WORLD_SIZE": str(start.run.gpus_per_node),
        "MASTER_ADDR": start.master_addr,
        "MASTER_PORT": str(start.master_port),
    }
    # -u: a rank reads its own log when it ends
    command = [sys.executable, "-u", "-m", "openclip_superclip.runs.rank_main", str(start.file)]
    return start_process(command, environment, start.logs / f"rank_{rank}.log")


def start_process(
    command: list[str], environment: dict[str, str], output: Path
) -> subprocess.Popen:
    """Starts a command in a session of its own, its output in a file."""
    with open(output, "wb") as file:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def _end(processes: Iterable[subprocess.Popen]) -> None:
    """Ends ranks and their data loaders by SIGTERM, after some seconds by SIGKILL."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + EXIT_PATIENCE
    for process in running:
        try:
            process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def last_line(output: Path) -> str:
    """Returns the last line of a file that is not empty."""
    lines = output.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"


def free_port() -> int:
    """Returns a free port of this machine."""
    with socket.socket() as listening:
        listening.bind(("", 0))
        return listening.getsockname()[1]
