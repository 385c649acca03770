"""Processes of a run: how they are started, asked to stop and watched, and which of them failed first."""

import contextlib
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
from ..files import read_json, write_json

EXIT_REQUEUE = 75  # the exit code after which the job script starts the run again
STOPPED_BY = {
    signal.SIGUSR1: EXIT_REQUEUE,  # the job's time is nearly up
    signal.SIGTERM: 128 + signal.SIGTERM,
    signal.SIGINT: 128 + signal.SIGINT,
    signal.SIGHUP: 128 + signal.SIGHUP,
}  # and the exit code of a run that each of them stops
EXIT_PATIENCE = 10  # seconds that a process has to end once it is asked to
DUMP_STACKS = signal.SIGUSR2  # has a rank write the Python stacks of its threads into its log


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
    """Runs `superclip ARGUMENTS` and returns its exit code and CPU seconds, including those of its own processes.

    It is in a session of its own, which the signals of a terminal do not reach, and gets SIGTERM when this process ends
    or an exception passes.

    Args:
        output: the file of what it prints.
        one_thread: of a CPU.
        is_to_stop: called twice a second; when it returns True the process is asked to end, and waited for.
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
            time.sleep(0.5)  # wait4, the only way to this child's CPU time, takes no timeout
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
    """Returns where a rank writes its process number."""
    return logs / f"rank_{rank}.pid"


def dump_stacks(logs: Path, ranks: range) -> None:
    """Has those of this machine's ranks that are alive write the stacks of their threads into their logs."""
    for rank in ranks:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(pid_file(logs, rank).read_text()), DUMP_STACKS)


class Heartbeat:
    """This node's heartbeat in a file, and its watch over other nodes: node 0 watches all, the others node 0.

    If a node loses power, the ranks of the others fail within seconds, and SLURM takes minutes to notice. A node whose
    ranks have failed says so here, and waits for node 0 to end, which tells a failed node from a lost one.
    """

    PERIOD = 2  # seconds between two beats
    PATIENCE = 20  # seconds after which a node without a beat is lost
    FAILED, ENDED, STALLED = "failed", "ended", "stalled"

    def __init__(self, logs: Path, node: int, num_nodes: int):
        self.logs, self.node, self.num_nodes = logs, node, num_nodes
        others = range(1, num_nodes) if node == 0 else [0]
        self.heard = {other: ("", time.monotonic()) for other in others}  # the last beat of each, and when it came
        self.last = 0.0

    def beat(self, text: str = "") -> None:
        """Writes this node's heartbeat, every few seconds, or at once a `text` that stays; reads those it watches."""
        now = time.monotonic()
        if self.num_nodes == 1 or (now - self.last < self.PERIOD and not text):
            return
        self.last = now
        with contextlib.suppress(OSError):  # on a full disk, which the rank that fills it reports
            self._file(self.node).write_text(text or str(now))
        for node, (before, _) in self.heard.items():
            with contextlib.suppress(OSError):
                if (beat := self._file(node).read_text()) != before:
                    self.heard[node] = beat, now

    def says(self, text: str) -> bool:
        """Returns whether a node that this one watches has written the text."""
        return any(beat == text for beat, _ in self.heard.values())

    def lost_nodes(self, text: str) -> list[int]:
        """Returns the nodes whose heartbeats have stopped; writes `text` until every node is heard or lost.

        Other nodes wait here until node 0 has ended: srun ends the whole step with the first node that fails.
        """
        self.beat(text)  # which reads the beats that came before
        began = time.monotonic()
        while waiting := [
            (node, at) for node, (beat, at) in self.heard.items()
            if beat != self.ENDED and (self.node != 0 or (beat != self.FAILED and at <= began))
        ]:  # fmt: skip
            now = time.monotonic()
            if all(now - at > self.PATIENCE for _, at in waiting):
                return [node for node, _ in waiting]
            if now - began > 3 * self.PATIENCE:
                break
            time.sleep(0.5)
            self.beat(text)
        return []

    def _file(self, node: int) -> Path:
        return self.logs / f"node_{node}.beat"


def down_nodes() -> str:
    """Returns the names of the job's nodes that SLURM has lost, "" if there is none or it cannot be asked."""
    nodes = os.environ.get("SLURM_STEP_NODELIST")
    ask = ["sinfo", "--noheader", f"--nodes={nodes}", "--states=down,no_respond", "--format=%N"]
    try:
        found = subprocess.run(ask, capture_output=True, text=True, timeout=3).stdout if nodes else ""
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ", ".join(sorted(set(found.split())))  # one line for each partition


# Kinds of failures. What has none is the user's to fix.
LOSS = "loss"  # the training itself is ruined
HARDWARE = "hardware"  # a machine, a GPU or the network between them
STALL = "stall"  # nothing has failed, and there is no progress
NODE = "node"  # one node lacks what the others have: another node is needed
OF_HARDWARE = re.compile(
    r"NCCL|\bECC\b|[Uu]ncorrectable|NVLink|\bXid\b|[Bb]us error|SIGBUS|unspecified launch failure|"
    r"CUDA error: (unknown error|an illegal memory access)|DistBackendError|DistNetworkError|"
    r"Connection (closed|reset|refused)|Broken pipe|Input/output error|Stale file handle|EADDRINUSE|Timed? ?out"
)


class Failure(NamedTuple):
    """How one rank, or one node's launcher, ended; its file is one that torch.distributed.elastic reads too."""

    who: str  # "" if it is the same on all ranks
    message: str  # one line
    traceback: str = ""
    timestamp: float = 0.0
    is_cause: bool = False  # whether it cannot follow from another rank's end
    kind: str = ""
    host: str = ""  # by SLURM's name

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
        """Returns what sorts failures, the one that the others follow from first."""
        return not self.is_cause, self.timestamp


def failure_here(who: str, message: str, traceback: str = "", kind: str = "") -> Failure:
    """Returns a failure on this machine, now."""
    return Failure(f"{who} on {socket.gethostname()}", message, traceback, time.time(), kind=kind, host=this_host())


def kind_of(message: str) -> str:
    """Returns HARDWARE if an error's message is one of machines, else ""."""
    return HARDWARE if OF_HARDWARE.search(message) else ""


def this_host() -> str:
    """Returns the name of this machine in SLURM."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def rank_failed(logs: Path) -> bool:
    """Returns whether a rank that this machine sees has written a failure."""
    return any(logs.glob("rank_*.error.json"))


def node_failed(logs: Path) -> bool:
    """Returns whether a node has ended because of a failure."""
    _refresh(logs)
    return any(logs.glob("node_*.error.json"))


def first_failure(logs: Path) -> Failure:
    """Returns the failure that the others follow from: of a rank that was killed, or else the earliest one."""
    _refresh(logs)
    return min(map(Failure.read, logs.glob("*.error.json")), key=Failure.order)


def launcher_file(logs: Path, node: int) -> Path:
    """Returns where a node's launcher writes how its ranks ended, for this node alone to read."""
    return logs / f"launcher_{node}.json"


def write_node_failure(logs: Path, node: int, exit_code: int) -> None:
    """Writes for all nodes why this one ended, with the message of its launcher if it left any."""
    seen = launcher_file(logs, node)
    if seen.exists():
        failure = Failure.read(seen)
    elif rank_failed(logs):
        failure = first_failure(logs)
    else:
        killed = exit_code == -signal.SIGKILL  # as the kernel does if memory is short
        failure = failure_here("the launcher", f"it ended with exit code {exit_code}", kind=HARDWARE if killed else "")
    failure.write(logs / f"node_{node}.error.json")


def describe(failure: Failure, logs: Path) -> str:
    """Returns what to print: the traceback first."""
    parts = [failure.traceback.rstrip() or failure.message]
    if failure.who:
        parts.insert(0, f"superclip run: {failure.who} failed first:")
    return "\n".join([*parts, f"superclip run: the output of every rank is in {logs}"])


def _refresh(logs: Path) -> None:
    """Has NFS, which caches the list of a folder's files for a minute, ask for those that other nodes have written."""
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=logs):
        pass
