"""Processes of a run: how its ranks are started, watched and stopped."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ..environment import end_with_parent
from .recovery import CONNECTION, KILLED, Failure
from .run import Start

EXIT_AGAIN = 75  # the exit code after which the job's script starts the run again
STOPPED_BY = {
    signal.SIGUSR1: EXIT_AGAIN,  # the job's time is nearly up
    signal.SIGTERM: 128 + signal.SIGTERM,
    signal.SIGINT: 128 + signal.SIGINT,
    signal.SIGHUP: 128 + signal.SIGHUP,
}  # signals that stop a run, and its exit code then
EXIT_PATIENCE = 10  # seconds until ranks that do not end are killed
POLLS = 10  # of the ranks per second
FLIGHT_RECORDER = {  # of NCCL: the last collectives of each rank, written if one of them times out
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
    "TORCH_FR_BUFFER_SIZE": "2000",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}


class Stopped(BaseException):
    """A signal stops the run."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = STOPPED_BY[signal.Signals(signum)]
        self.before_time_is_up = signum == signal.SIGUSR1


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raises Stopped at the first signal of STOPPED_BY; later ones are ignored until the process
    ends."""
    before = {each: signal.getsignal(each) for each in STOPPED_BY}
    # nohup ignores SIGHUP
    heard = [each for each, handler in before.items() if handler != signal.SIG_IGN]

    def stop(signum, _):
        for each in heard:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(signum)

    for each in heard:
        signal.signal(each, stop)
    try:
        yield
    finally:
        if all(signal.getsignal(each) == stop for each in heard):  # else the process is to end
            for each in heard:
                signal.signal(each, before[each])


def run_ranks(start: Start, each_second: Callable[[], None]) -> list[Failure]:
    """Runs this node's ranks to their end, and returns the failures, which are also written; none
    if all succeeded.

    If one fails, or `each_second` raises an exception, all are ended.
    """
    processes: dict[int, subprocess.Popen] = {}
    try:
        for rank in start.ranks:
            processes[rank] = _start_rank(start, rank)
        for poll in itertools.count(1):
            codes = {rank: process.poll() for rank, process in processes.items()}
            if failed := {rank: code for rank, code in codes.items() if code}:
                return [
                    _failure(start.logs / f"rank_{rank}.error.json", rank, code)
                    for rank, code in failed.items()
                ]
            if None not in codes.values():
                return []
            if poll % POLLS == 0:
                each_second()
            time.sleep(1 / POLLS)
    finally:
        _end(processes.values())


def _failure(file: Path, rank: int, exit_code: int) -> Failure:
    """Returns the failure that a rank has written or, for one that could not, writes what its
    exit code shows."""
    if file.exists():
        return Failure.read(file)
    failure = exit_failure(rank, exit_code)
    with contextlib.suppress(OSError):  # on a full disk
        failure.write(file)
    return failure


def exit_failure(rank: int, exit_code: int) -> Failure:
    """Returns the failure that the exit code of a rank shows."""
    if exit_code > 0:
        return Failure.here(f"rank {rank}", f"it ended with exit code {exit_code}")
    name = f"Signal {-exit_code} ({signal.Signals(-exit_code).name})"
    # of SLURM, and of NCCL's watchdog when another rank is gone
    if -exit_code in (signal.SIGTERM, signal.SIGABRT):
        return Failure.here(f"rank {rank}", f"it was ended by {name}", kind=CONNECTION)
    return Failure.here(f"rank {rank}", f"it was ended from outside: {name}", kind=KILLED)


def _start_rank(start: Start, rank: int) -> subprocess.Popen:
    """Starts a rank in a session of its own, which signals of a terminal do not reach; its
    output goes into a file."""
    environment = {
        **({"OMP_NUM_THREADS": "1"} if start.run.gpus_per_node > 1 else {}),  # as torchrun does
        **FLIGHT_RECORDER,
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": f"{start.logs}/nccl_trace_",
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(start.run.world_size),
        "LOCAL_RANK": str(rank - start.ranks[0]),
        "LOCAL_WORLD_SIZE": str(start.run.gpus_per_node),
        "MASTER_ADDR": start.master_addr,
        "MASTER_PORT": str(start.master_port),
    }
    with open(start.logs / f"rank_{rank}.log", "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "openclip_superclip.runs.rank", str(start.file)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=end_with_parent,
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


def run_superclip(
    arguments: Sequence[str], output: Path, one_thread: bool, is_to_stop: Callable[[], bool]
) -> tuple[int, float]:
    """Runs `superclip ARGUMENTS` and returns its exit code and CPU seconds, including those of its
    own processes.

    It runs in a session of its own, which signals of a terminal do not reach, and gets SIGTERM when
    this process ends, or when `is_to_stop`, which is called twice a second, returns True. Its
    output goes to the file `output`.
    """
    threads = {"OMP_NUM_THREADS": "1"} if one_thread else {}
    with open(output, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "openclip_superclip", *arguments],
            env={**os.environ, **threads},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: end_with_parent(signal.SIGTERM),
        )
    ended = 0
    try:
        while not ended:
            time.sleep(0.5)  # wait4, the only way to this child's CPU time, takes no timeout
            if stops := is_to_stop():
                process.terminate()
            ended, status, usage = os.wait4(process.pid, 0 if stops else os.WNOHANG)
    finally:
        if not ended:
            process.terminate()
            process.wait()
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


def last_line(output: Path) -> str:
    """Returns the last line of a file that is not empty."""
    lines = [line for line in output.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def free_port() -> int:
    """Returns a free port of this machine."""
    with socket.socket() as one:
        one.bind(("", 0))
        return one.getsockname()[1]


def failures(logs: Path) -> list[Failure]:
    """Returns the failures of ranks and nodes, in their order."""
    refresh(logs)
    return [Failure.read(file) for file in sorted(logs.glob("*.error.json"), key=_order)]


def _order(file: Path) -> tuple[str, int]:
    name, _, number = file.name.partition(".")[0].rpartition("_")
    return name, int(number)


def describe(failure: Failure, logs: Path) -> str:
    """Returns what to print: the traceback first."""
    parts = [failure.traceback.rstrip() or failure.message]
    if failure.who:
        parts.insert(0, f"superclip run: {failure.who} failed first:")
    return "\n".join([*parts, f"superclip run: the output of every rank is in {logs}"])


def refresh(logs: Path) -> None:
    """Makes NFS, which caches the list of a folder's files for a minute, look for new files of
    other nodes."""
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=logs):
        pass
