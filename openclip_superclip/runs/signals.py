"""The signals that stop a run."""

import contextlib
import signal
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
        self.before_time_is_up = signum == signal.SIGUSR1


_heard: list[signal.Signals] = []  # while a command can be stopped


def ignore_signals() -> None:
    """Makes this process ignore the signals that would stop it until it ends."""
    for each in _heard:
        signal.signal(each, signal.SIG_IGN)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raises Stopped at the first signal of STOPPED_BY; later ones are ignored until the process
    ends."""
    # nohup ignores SIGHUP
    _heard[:] = [each for each in STOPPED_BY if signal.getsignal(each) != signal.SIG_IGN]

    def stop(signum, _):
        ignore_signals()
        raise Stopped(signum)

    before = {each: signal.signal(each, stop) for each in _heard}
    try:
        yield
    finally:
        _heard.clear()
        for each, handler in before.items():
            if signal.getsignal(each) == stop:  # else the process is to end
                signal.signal(each, handler)
