"""The signals that stop a run."""

import contextlib
import signal
import time
from collections.abc import Iterator

EXIT_AGAIN = 75  # the exit code after which the job's script starts the run again
EXIT_REFUSED = 192  # of another node than the first: larger than those of signals, which it causes
STOPPED_BY = {
    signal.SIGUSR1: EXIT_AGAIN,  # the job's time is nearly up
    signal.SIGTERM: 128 + signal.SIGTERM,
    signal.SIGINT: 128 + signal.SIGINT,
    signal.SIGHUP: 128 + signal.SIGHUP,
}  # signals that stop a run, and its exit code then


class Stopped(BaseException):
    """A signal stops a command, which resumes if it is called again."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = STOPPED_BY[signum]
        self.time = time.time()
        self.before_time_is_up = signum == signal.SIGUSR1


@contextlib.contextmanager
def signals_ignored() -> Iterator[None]:
    """A context in which this process ignores the signals that would stop it."""
    before = {each: signal.signal(each, signal.SIG_IGN) for each in STOPPED_BY}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raises Stopped at the first signal of STOPPED_BY; later ones are ignored until the process
    ends."""
    # nohup ignores SIGHUP
    heard = [each for each in STOPPED_BY if signal.getsignal(each) != signal.SIG_IGN]

    def stop(signum, _):
        for each in heard:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(signum)

    before = {each: signal.signal(each, stop) for each in heard}
    try:
        yield
    finally:
        for each, handler in before.items():
            if signal.getsignal(each) == stop:  # else the process is to end
                signal.signal(each, handler)
