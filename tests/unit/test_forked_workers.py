"""Work in forked processes: in order, and told where one of them is killed."""

import multiprocessing
import os
import signal
import time

import pytest

from openclip_superclip.data.shards import work_on
from openclip_superclip.errors import InputError


@pytest.fixture(autouse=True)
def one_minute():
    """A test that would wait for ever fails."""

    def fail(*_):
        raise AssertionError("a worker was waited for")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_the_results_come_in_order_and_an_error_and_an_early_end_leave_no_process():
    def slow_where_even(number):
        time.sleep(0.01 * (number % 2 == 0))
        return 1 / (number - 5)

    assert list(work_on(slow_where_even, range(5), 3, "--jobs")) == [1 / (number - 5) for number in range(5)]
    with pytest.raises(ZeroDivisionError):
        list(work_on(slow_where_even, range(9), 3, "--jobs"))
    results = work_on(lambda number: time.sleep(number), [0, 1000, 1000], 2, "--jobs")
    next(results)
    results.close()
    assert not multiprocessing.active_children()
    assert list(work_on(slow_where_even, [], 3, "--jobs")) == []


def kills_itself(*_, **__):
    """As the kernel does where memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_reported_with_what_helps():
    with pytest.raises(InputError, match=r"--jobs: a worker was killed \(out of memory\?\): use fewer --jobs than 2$"):
        list(work_on(kills_itself, ["a", "b", "c"], 2, "--jobs"))
    assert not multiprocessing.active_children()
