"""Work on many shards in forked processes, which a worker's death ends."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from ..errors import InputError
from ..parent_process import end_with_parent

Item, Result = TypeVar("Item"), TypeVar("Result")
_of_this_process: dict[str, Callable] = {}  # a fork inherits what cannot be sent: a data set, what reads it


def work_on(work: Callable[[Item], Result], items: Sequence[Item], num_workers: int, flag: str) -> Iterator[Result]:
    """Yields `work(item)` of each item, in their order, from so many processes; none is left where it is closed.

    Args:
        work: need not be one that can be sent to a process; its results are.
        flag: of the command line, which says how many workers there are.

    Raises InputError where a worker is killed, as the kernel does where memory is short.
    """
    num_workers = min(num_workers, len(items))
    if num_workers < 1:
        return
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("fork"), _begin, (work,))
    try:
        yield from pool.map(_work, items)
    except BrokenProcessPool:
        fewer = f"use fewer {flag} than {num_workers}" if num_workers > 1 else "this machine has too little for one"
        raise InputError(f"{flag}: a worker was killed (out of memory?): {fewer}") from None
    finally:
        workers = set(multiprocessing.active_children()) - before
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def _begin(work: Callable) -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all: the first process ends the others
    _of_this_process["work"] = work


def _work(item):
    return _of_this_process["work"](item)
