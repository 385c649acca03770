"""Which rank of a run failed first, and with which error: through files, for ranks die together and out of order."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ..environment import end_with_parent
from ..files import write_json, write_text

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


QUEUE_AGAIN = 75  # the exit code after which the job script requeues the job


STOPPED_BY = {
    signal.SIGUSR1: QUEUE_AGAIN,  # the job's time is nearly up
    signal.SIGTERM: 128 + signal.SIGTERM,
    signal.SIGINT: 128 + signal.SIGINT,
    signal.SIGHUP: 128 + signal.SIGHUP,
}  # and the exit code of a run that each of them stops


class Stopped(BaseException):
    """A signal has asked the run to stop."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = STOPPED_BY[signal.Signals(signum)]
        self.before_time_is_up = signum == signal.SIGUSR1


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raises Stopped at the first signal that asks for it; later ones change nothing, until the process ends."""
    before = {each: signal.getsignal(each) for each in STOPPED_BY}
    heard = [each for each, handler in before.items() if handler != signal.SIG_IGN]  # nohup has it ignore SIGHUP

    def stop(signum, _):
        for each in heard:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(signum)

    for each in heard:
        signal.signal(each, stop)
    yield
    for each in heard:
        signal.signal(each, before[each])


EXIT_PATIENCE = 10  # seconds that a process has to end once it is asked to


def run_to_end(command: list[str], output: Path, each_second: Callable[[], None]) -> int:
    """Runs `command` in a session of its own, its output in a file, and returns its exit code.

    The signals of a terminal or of SLURM so reach this process alone, which ends the command in order.
    """
    with open(output, "wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            preexec_fn=end_with_parent,
        )  # fmt: skip
    try:
        while True:
            try:
                return process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                each_second()
    finally:
        _end(process)


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(EXIT_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()  # its children end with it
            process.wait()


def run_superclip(
    arguments: Sequence[str], output: Path, one_thread: bool, is_to_stop: Callable[[], bool]
) -> tuple[int, float]:
    """Runs `superclip ARGUMENTS` and returns its exit code and CPU seconds, those of its own processes among them.

    It is in a session of its own, which the signals of a terminal do not reach, and is asked to end by SIGTERM where
    this process ends or an exception passes.

    Args:
        output: the file of what it prints.
        one_thread: of a CPU.
        is_to_stop: called twice a second; where it says so the process is asked to end, and waited for.
    """
    threads = {"OMP_NUM_THREADS": "1"} if one_thread else {}
    with open(output, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "openclip_superclip", *arguments], env={**os.environ, **threads},
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=lambda: end_with_parent(signal.SIGTERM),
        )  # fmt: skip
    ended = 0
    try:
        while not ended:
            time.sleep(0.5)  # wait4, which alone tells this child's CPU time, takes no timeout
            if is_to_stop():
                process.terminate()
                ended, status, usage = os.wait4(process.pid, 0)
            else:
                ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    finally:
        if not ended:
            process.terminate()
            process.wait()
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


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
