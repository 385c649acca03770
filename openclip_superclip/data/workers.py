"""Work on many items in parallel processes."""

import functools
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

from tqdm import tqdm

from ..environment import end_with_parent

# a fork inherits what cannot be pickled: a data set and its reader
_of_this_process: dict[str, Callable] = {}


def work_on(work: Callable, items: Sequence, num_workers: int) -> Iterator:
    """Yields `work(item)` of each item, a shard, in order, computed in parallel processes, if
    several, under a bar.

    Closing the generator ends the processes. `work` need not be picklable.
    """
    bar = functools.partial(tqdm, total=len(items), unit=" shards", disable=None)
    num_workers = min(num_workers, len(items))
    if num_workers <= 1:
        yield from bar(map(work, items))
        return
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("fork"), _begin, (work,))
    try:
        yield from bar(pool.map(_work, items))
    finally:
        workers = set(multiprocessing.active_children()) - before
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.kill()  # a worker inherits how this process handles SIGTERM
        for worker in workers:
            worker.join()


def _begin(work: Callable) -> None:
    end_with_parent()
    # Ctrl-C reaches all processes; the parent ends the workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _of_this_process["work"] = work


def _work(item):
    return _of_this_process["work"](item)
