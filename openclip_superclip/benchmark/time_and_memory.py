"""Times and peak memory of calls, interleaved so that a drifting machine treats all alike."""

import multiprocessing
import resource
import signal
import sys
import time
from collections.abc import Callable

import torch
from tqdm import tqdm

from ..errors import InputError


def interleaved(calls: dict[str, Callable[[], None]], repeats: int, device: str, desc: str) -> dict[str, list[float]]:
    """Returns seconds of each call, `repeats` of them, taken in turns after one call that is not counted."""
    seconds = {name: [] for name in calls}
    for repeat in tqdm(range(repeats + 1), desc=desc, unit=" rounds"):
        for name, call in calls.items():
            elapsed = _seconds(call, device)
            if repeat:
                seconds[name].append(elapsed)
    return seconds


def peak_memory(function: Callable[..., None], *args, device: str) -> int:
    """Returns the bytes that a call adds at its peak; `function(*args)` returns the call.

    What `function` makes, its inputs, is not counted. On the CPU both run in a fresh process whose peak is read, on
    CUDA the allocator's.
    """
    if device.startswith("cuda"):
        call = function(*args)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_peak_here, args=(sender, torch.get_num_threads(), function, *args))
    process.start()
    process.join()
    if process.exitcode == -signal.SIGKILL:
        raise InputError("too little memory here: give a smaller --head-batch or --vocab")
    if process.exitcode != 0:
        raise RuntimeError(f"measuring memory failed with exit code {process.exitcode}")
    return receiver.recv()


def _peak_here(sender, num_threads: int, function: Callable, *args) -> None:
    torch.set_num_threads(num_threads)
    call = function(*args)
    before = _reset_peak()
    call()
    sender.send(_peak() - before)


def _reset_peak() -> int:
    """Forgets this process's peak, where the system can, and returns the bytes that count as there before."""
    if sys.platform == "linux":
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    return _peak()


def _peak() -> int:
    """Returns the most bytes that this process has held since the last reset."""
    if sys.platform == "linux":
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _seconds(call: Callable[[], None], device: str) -> float:
    _synchronise(device)
    start = time.perf_counter()
    call()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
