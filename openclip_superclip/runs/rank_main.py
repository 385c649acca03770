"""One rank of a run: trains as `superclip train`, and writes why it fails.

python -m openclip_superclip.runs.rank_main LOGS/node_0.json
"""

import faulthandler
import os
import sys
import traceback

from ..environment import end_with_parent, keep_freed_memory, peak_of_process
from ..errors import InputError, to_stderr
from ..files import write_json
from .child_processes import Start, last_line
from .recovery import Failure


def main(file: str) -> int:
    """Trains as the file of a Start describes, and returns the exit code; an exception is first
    written to a file."""
    start = Start.open(file)
    rank = int(os.environ["RANK"])
    end_with_parent(parent=start.launcher)
    faulthandler.enable()
    if start.run.device == "cpu":
        keep_freed_memory()
    try:
        _train(start, rank)
        return 0
    except Exception as error:
        failure = Failure.of(error, f"rank {rank}", traceback.format_exc())
        failure.write(start.logs / f"rank_{rank}.error.json")
        if failure.is_users:
            return 1
        raise


def _train(start: Start, rank: int) -> None:
    """Trains; raises InputError, with the last line of the rank's output, for another exit code
    than 0."""
    import torch

    from ..trainer.train import register_plugin, train
    from .loss_monitor import RankMonitor

    if start.run.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("PyTorch finds no GPU here")  # which another node may have
    monitor = RankMonitor(start, rank)
    register_plugin(monitor)
    try:
        with monitor.listing_unreadable():
            code = train(start.arguments)
    except SystemExit as exit:
        code = exit.code
        if isinstance(code, str):
            to_stderr(code)
    if code:
        raise InputError(last_line(start.logs / f"rank_{rank}.log"))
    if start.measures:
        write_json(start.logs / f"rank_{rank}.measures.json", _peak_memory())


def _peak_memory() -> dict:
    """Returns the peak of the GPU's memory or, without a GPU, of this process without its
    data-loading workers."""
    import torch

    if torch.cuda.is_initialized():
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        return {"of": "GPU", "peak": torch.cuda.max_memory_reserved(), "total": total}
    return {"of": "process", "peak": peak_of_process(), "total": None}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
