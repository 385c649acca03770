"""Work in forked processes: results come in order, and no process is left
behind."""

import multiprocessing
import os
import signal
import time

import pytest

from openclip_superclip.data.workers import work_on


@pytest.fixture(autouse=True)
def no_worker_is_left():
    """Fails a test that leaves a worker; workers inherit an ignored
    SIGTERM."""
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    others = set(multiprocessing.active_children())
    yield
    signal.signal(signal.SIGTERM, handler)
    # which the pool's thread may have waited for
    for worker in set(multiprocessing.active_children()) - others:
        with pytest.raises(ProcessLookupError):
            os.kill(worker.pid, 0)


def slow_if_even(number):
    time.sleep(0.01 * (number % 2 == 0))
    return 1 / (number - 5)


def test_results_come_in_order_and_an_error_of_a_worker_is_raised():
    assert list(work_on(slow_if_even, range(5), 3)) == [1 / (number - 5) for number in range(5)]
    assert list(work_on(slow_if_even, [], 3)) == []
    with pytest.raises(ZeroDivisionError):
        list(work_on(slow_if_even, range(9), 3))


def test_results_that_nobody_reads_are_given_up():
    results = work_on(lambda number: time.sleep(number), [0, 1000, 1000], 2)
    next(results)
    results.close()
