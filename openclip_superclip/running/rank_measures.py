"""What a rank of a rehearsal measures of itself: its peak of memory, its checkpoints, its sums over the ranks."""

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from ..atomic_files import write_json

ASKED = "SUPERCLIP_REHEARSAL"  # a variable of the environment, which launcher and ranks hand on
REPEATS = 5
REDUCED = {"cuda": 256 << 20, "cpu": 16 << 20}  # bytes of one sum over the ranks


def measures_file(logs: Path, rank: int) -> Path:
    return logs / f"rank_{rank}.measures.json"


def measured(train: Callable[[], int], logs: Path, rank: int) -> int:
    """Returns the exit code of `train()`; leaves what was measured in a file where that is 0."""
    save, saved = torch.save, []

    def timed_save(content, file, *args, **kwargs):
        start = time.perf_counter()
        save(content, file, *args, **kwargs)
        if isinstance(file, str | os.PathLike):
            saved.append({"seconds": time.perf_counter() - start, "bytes": os.path.getsize(file)})

    torch.save = timed_save
    try:
        code = train()
    finally:
        torch.save = save
    if not code:
        write_json(measures_file(logs, rank), {"memory": _memory(), "checkpoints": saved, "all_reduce": _all_reduce()})
    return code


def _memory() -> dict:
    """Returns what the rank, without its data loader's workers, held at its peak and, of a GPU, how much there is."""
    if torch.cuda.is_initialized():
        card = torch.cuda.get_device_properties(torch.cuda.current_device())
        return {"of": "GPU", "name": card.name, "peak": torch.cuda.max_memory_reserved(), "total": card.total_memory}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"of": "process", "name": None, "peak": peak, "total": None}


def _all_reduce() -> dict | None:
    """Returns bytes and seconds of sums over the ranks; None where there is one rank, or Horovod."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return None
    device = "cuda" if torch.cuda.is_initialized() else "cpu"
    numbers = torch.zeros(REDUCED[device] // 4, device=device)
    seconds = []
    for _ in range(REPEATS + 1):  # the first is not counted
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(numbers)
        numbers[0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return {"bytes": numbers.nbytes, "seconds": seconds[1:]}
