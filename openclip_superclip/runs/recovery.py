"""How a run continues after a failure: which failure caused the others, and a decision, a pure
function."""

import contextlib
import re
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from ..files import read_json, write_json
from .slurm import this_host

MAX_STARTS = 3  # in a row without a new slice, after which a run has failed
PREEMPTED_BY = "stopped by SIGTERM"  # the error of a preempted start
PREEMPTIONS = 10  # that count as one start
PATIENCE = 20  # seconds for which the node that closed a connection may report why
RESTART_SECONDS = 180  # with less time left in the job, it is requeued instead of started again

# Kinds of failures. The user must fix those of the first three.
USER = "user"  # in the code, the settings, memory
DATA = "data"  # too much of it cannot be read
LOSS = "loss"  # not finite
KILLED = "killed"  # a process was ended from outside
HARDWARE = "hardware"  # a machine, a GPU or the network between them
CONNECTION = "connection"  # another rank is gone, which has its own reason
LOST = "lost"  # nothing is known about another node
STOPPED = "stopped"  # by a signal, which causes no failure
FOR_THE_USER = (USER, DATA, LOSS)
# the kinds of causes, likeliest first
LIKELY = ((KILLED, DATA, LOSS), (USER,), (HARDWARE,), (CONNECTION,))
OF_CONNECTIONS = re.compile(
    r"Connection (closed|reset|refused)|Broken pipe|ncclRemoteError|remote process "
    r"exited|Timed? ?out|timed out|timing out|No route to host|Network is unreachable"
)
OF_HARDWARE = re.compile(
    r"NCCL (error|watchdog)|\bECC\b|[Uu]ncorrectable|(?i:nvlink)|\bXid\b|[Bb]us error|SIGBUS|"
    r"unspecified launch failure|CUDA unknown error|"
    r"CUDA error: (unknown error|an illegal memory access|system not yet|hardware stack error)|"
    r"DistBackendError|DistNetworkError|No CUDA GPUs|no CUDA-capable device|"
    r"invalid device ordinal|busy or unavailable|EADDRINUSE"
)
# of file systems, and of a node without its GPUs; also in errors of one line, which contain paths
OF_NODES = re.compile(
    r"Input/output error|Remote I/O error|Stale file handle|[Tt]ransport endpoint|Host is down|"
    r"Communication error|No such device|no GPU (here|was found)"
)


@dataclass(frozen=True)
class Failure:
    """How a rank, or `superclip run` on a node, has failed."""

    who: str  # "" if it is the same on all ranks
    message: str  # one line
    traceback: str = ""
    kind: str = USER
    host: str = field(default_factory=this_host)  # SLURM's name
    timestamp: float = field(default_factory=time.time)

    @staticmethod
    def of(error: Exception, who: str = "superclip run", traceback: str = "") -> "Failure":
        """Returns the failure that an exception on this machine describes, now; an InputError has
        no traceback."""
        if isinstance(error, InputError):
            kind = HARDWARE if OF_NODES.search(str(error)) else USER
            return Failure(who, str(error), kind=kind)
        message = f"{type(error).__name__}: {error}"
        return Failure(who, message, traceback, kind_of(message))

    @property
    def text(self) -> str:
        """What happened, to which rank and where."""
        return f"{self.who} on {self.host}: {self.message}" if self.who else self.message

    def describe(self, logs: Path) -> str:
        """Returns what to print, given the folder of the ranks' output: the traceback first."""
        first = f"superclip run: {self.who} on {self.host} failed first:\n" if self.who else ""
        return (
            f"{first}{self.traceback.rstrip() or self.message}\n"
            f"superclip run: the output of every rank is in {logs}"
        )

    def write(self, path: Path) -> None:
        write_json(path, vars(self))

    @staticmethod
    def read(path: Path) -> "Failure":
        return Failure(**read_json(path))


def kind_of(message: str) -> str:
    """Returns the kind of failure that the text of an error describes."""
    if OF_CONNECTIONS.search(message):
        return CONNECTION
    return HARDWARE if OF_HARDWARE.search(message) or OF_NODES.search(message) else USER


def exit_failure(rank: int, exit_code: int, output: str) -> Failure:
    """Returns the failure that the exit code of a rank shows; the end of its output shows whether
    NCCL's watchdog has ended it because of its own GPU."""
    who = f"rank {rank}"
    if exit_code > 0:
        return Failure(who, f"it ended with exit code {exit_code}")
    name = f"Signal {-exit_code} ({signal.Signals(-exit_code).name})"
    # of SLURM, and of NCCL's watchdog when another rank is gone
    if -exit_code in (signal.SIGTERM, signal.SIGABRT):
        # the watchdog's own name says nothing about the reason
        kind = HARDWARE if kind_of(output.replace("NCCL", "")) == HARDWARE else CONNECTION
        return Failure(who, f"it was ended by {name}", kind=kind)
    return Failure(who, f"it was ended from outside: {name}", kind=KILLED)


def failures(logs: Path) -> list[Failure]:
    """Returns the failures that ranks and nodes have written, in their order."""
    return list(map(Failure.read, new_files(logs, "*.error.json")))


def new_files(logs: Path, pattern: str) -> list[Path]:
    """Returns the files of a folder that match a pattern, short names first, also those that other
    nodes have just written."""
    # NFS, which caches the list of a folder's files for a minute, then looks for new ones
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=logs):
        pass
    return sorted(logs.glob(pattern), key=lambda file: (len(file.name), file.name))


def first_failure(failures: Sequence[Failure]) -> Failure | None:
    """Returns the failure that caused the others, given in the order of the ranks; None without
    one.

    Other ranks' ends cannot cause some kinds of failures, and a closed connection always has
    another cause. Clocks are only compared on one machine.
    """
    for kinds in LIKELY:
        if likely := [failure for failure in failures if failure.kind in kinds]:
            here = [failure for failure in likely if failure.host == likely[0].host]
            return min(here, key=lambda failure: failure.timestamp)
    return None


def cause(
    logs: Path,
    here: Sequence[Failure],
    nodes: Sequence[str],
    patience: float = PATIENCE,
    *,
    is_stopped: bool = False,
) -> Failure | None:
    """Returns the failure that caused the others, None if there is none; waits up to `patience`
    seconds for other nodes to report it.

    If only connections were closed, or a signal has stopped this node, the nodes that have
    reported neither a failure nor a signal are lost. `here` are this node's failures, which it may
    not have been able to write; `nodes` are the names of all nodes.
    """
    deadline = time.monotonic() + (patience if len(nodes) > 1 else 0)
    while True:
        known = [*failures(logs), *here]
        failure = first_failure(known)
        silent = sorted({*nodes} - {failure.host for failure in known})
        is_known = failure is not None and failure.kind != CONNECTION
        if is_known or (is_stopped and not silent) or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    if silent and not is_known and (failure or is_stopped):
        message = f"lost contact with {', '.join(silent)}"
        return Failure("", message, kind=LOST, host=silent[0])
    return failure


RESTART = "restart"  # the ranks start again on the same machines
REQUEUE = "requeue"  # SLURM starts the job again


@dataclass(frozen=True)
class Decision:
    """How a run continues; the job's script reads the first two fields in state.json."""

    next: str | None = None  # RESTART or REQUEUE; None if the run ends
    without: str | None = None  # the node that SLURM excludes if there are others
    why: str = ""  # why the run ends, added to the failure's text


ENDS = Decision()


def decide(
    failure: Failure, attempts: Sequence[Mapping], progress: int, time_left: float | None
) -> Decision:
    """Returns how a run continues after a failure.

    Args:
        attempts: all starts of the run, as run.json records them; the last one has failed.
        progress: the number of saved slices.
        time_left: seconds until the job's time limit, None without one.
    """
    if failure.kind in FOR_THE_USER:
        return ENDS
    starts = starts_without_slice(attempts, progress)
    if starts >= MAX_STARTS:
        return Decision(why=f"; {starts} starts in a row ended before a slice was trained")
    if starts > 1:  # the node may be the reason
        return Decision(REQUEUE, without=failure.host)
    if failure.kind == LOST or (time_left is not None and time_left < RESTART_SECONDS):
        return Decision(REQUEUE)
    return Decision(RESTART)


def starts_without_slice(attempts: Sequence[Mapping], progress: int) -> int:
    """Returns how many starts in a row, including the last one, have not saved a slice.

    Earlier starts count if the run was started again after them, or if SLURM has requeued their job
    since; preempted ones count a tenth.
    """
    number = 0
    preempted = 0
    last = attempts[-1] if attempts else None
    for attempt in reversed(attempts):
        same_job = last.get("job") and attempt.get("job") == last["job"]
        requeued = same_job and attempt.get("restarts") != last.get("restarts")
        counts = attempt is last or attempt.get("again") or requeued
        if attempt.get("epoch_before") != progress or not counts:
            break
        if attempt is not last and attempt.get("error") == PREEMPTED_BY:
            preempted += 1
        else:
            number += 1
    return number + preempted // PREEMPTIONS
