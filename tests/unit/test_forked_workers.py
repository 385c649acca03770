"""Work in forked processes: in order, and told where one of them is killed."""

import multiprocessing
import os
import signal
import time

import pytest

from openclip_superclip.data import conversion, shards
from openclip_superclip.data.frequencies import each_counted
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


class KilledCount:
    captions, count = iter, kills_itself


def counted():
    with each_counted(KilledCount(), ["a", "b", "c"], 2) as each:
        list(each)


@pytest.mark.parametrize(("call", "flag"), [
    (lambda: shards.look_at(["a", "b", "c"], "", 2), "--jobs"), (counted, "--workers"),
    (lambda: list(conversion._in_parallel(kills_itself, ["a", "b", "c"], 2)), "--jobs"),
])  # fmt: skip
def test_a_worker_that_is_killed_is_told_with_what_helps(call, flag, monkeypatch):
    monkeypatch.setattr(shards, "look", kills_itself)
    with pytest.raises(InputError, match=rf"{flag}: a worker was killed \(out of memory\?\): use fewer {flag} than 2$"):
        call()
    assert not multiprocessing.active_children()
