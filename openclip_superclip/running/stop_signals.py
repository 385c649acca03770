"""The signals that ask a run to stop, and the exit codes that they lead to."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

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
