"""Runs a node's launcher to its end, or ends it with all of its ranks."""

import ctypes
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 10  # seconds that the ranks have to end once they are asked to
QUEUE_AGAIN = 75  # the exit code after which the job script puts the job back into the queue
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


def launch(command: list[str], output: Path, each_second: Callable[[], None]) -> int:
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


def end_with_parent(death_signal: int = signal.SIGKILL) -> None:
    """Has the kernel end this process when its parent dies, so that nothing writes on into a run that is given up."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux alone
    if prctl:
        prctl(1, int(death_signal))


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()  # its ranks end with it
            process.wait()


class Follower:
    """Shows on standard output what is added to a file."""

    def __init__(self, path: Path):
        self.path, self.shown = path, 0

    def read(self) -> bytes:
        """Returns what was added since it was last called."""
        if not self.path.exists():
            return b""
        with open(self.path, "rb") as file:
            file.seek(self.shown)
            added = file.read()
        self.shown += len(added)
        return added

    @staticmethod
    def show(added: bytes) -> None:
        sys.stdout.buffer.write(added)
        sys.stdout.buffer.flush()
