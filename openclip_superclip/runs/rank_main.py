"""One rank of a run: trains as `superclip train`, and writes why it fails.

python -m openclip_superclip.runs.rank_main LOGS/node_0.json
"""

import faulthandler
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from ..checkpoints.validation import why_stopped_early
from ..checkpoints.weights import holds_numbers
from ..environment import end_with_parent, keep_freed_memory, peak_of_process, replaced
from ..errors import InputError, to_stderr
from ..files import write_json
from ..hooks import hookimpl
from ..method.distributed import begin_sum
from ..openclip.train import register_plugin, train
from .child_processes import Start, last_line
from .loss_monitor import CountedSteps, LossMonitor, NonFiniteLoss
from .progress import FIRST_STEP, STEPS
from .recovery import DATA, LOSS, Failure
from .staging import StagedShards
from .unreadable import too_much_unreadable, unreadable_of_slice


class TooMuchUnreadable(Exception):
    """The ranks could not read more of a slice than --unreadable-max allows."""


class StoppedEarly(Exception):
    """Validation has not improved for --patience epochs."""


# errors that all ranks find, and the kinds of their failures
OF_ALL_RANKS = {NonFiniteLoss: LOSS, TooMuchUnreadable: DATA}


def main(file: str) -> int:
    """Trains as the file of a Start describes, and returns the exit code; an exception is first
    written to a file."""
    start = Start.open(file)
    rank = int(os.environ["RANK"])
    end_with_parent(parent=start.launcher)
    faulthandler.enable()
    if start.run.device == "cpu":
        keep_freed_memory()
    minutes = start.run.settings.stall_minutes
    dump_stacks_after(minutes and max(minutes, FIRST_STEP))
    try:
        _train(start, rank)
        return 0
    except Exception as error:
        _failure(error, rank).write(start.logs / f"rank_{rank}.error.json")
        if isinstance(error, InputError):
            return 1
        raise


def dump_stacks_after(minutes: float) -> None:
    """Makes this process write the Python stacks of its threads after so many minutes, 0 for
    never, unless it is called again."""
    if minutes:
        faulthandler.dump_traceback_later(60 * minutes)


def _failure(error: Exception, rank: int) -> Failure:
    kind = OF_ALL_RANKS.get(type(error))
    if kind:
        return Failure("", str(error), kind=kind)
    return Failure.of(f"rank {rank}", error, traceback.format_exc())


def _train(start: Start, rank: int) -> None:
    """Trains; raises InputError, with the last line of the rank's output, for another exit code
    than 0, and NonFiniteLoss for non-finite weights after the last step."""
    monitor = RankMonitor(start, rank)
    register_plugin(monitor)
    try:
        with monitor.listing_unreadable():
            code = measured(start, rank) if start.measures else train(start.arguments)
    except StoppedEarly:
        return
    except SystemExit as exit:
        code = exit.code
        if isinstance(code, str):
            to_stderr(code)
    if code:
        raise InputError(last_line(start.logs / f"rank_{rank}.log"))
    last = start.logs.parents[1] / f"checkpoints/epoch_{start.run.num_slices}.pt"
    if rank == 0 and last.exists() and not holds_numbers(last):
        raise NonFiniteLoss(f"the weights are not finite after the last step, {start.run.steps}")


def measured(start: Start, rank: int) -> int:
    """Trains and returns the exit code; writes the measures of a rehearsal into a file if it is
    0."""
    save = torch.save
    saved = []

    def timed_save(content, file, *args, **kwargs):
        began = time.perf_counter()
        save(content, file, *args, **kwargs)
        if isinstance(file, str | os.PathLike):
            saved.append({"seconds": time.perf_counter() - began, "bytes": os.path.getsize(file)})

    with replaced(torch, save=timed_save):
        code = train(start.arguments)
    if not code:
        measures = {"memory": _peak_memory(), "checkpoints": saved}
        write_json(start.logs / f"rank_{rank}.measures.json", measures)
    return code


def _peak_memory() -> dict:
    """Returns the peak of the GPU's memory or, without a GPU, of this process without its
    data-loading workers."""
    if torch.cuda.is_initialized():
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        return {"of": "GPU", "peak": torch.cuda.max_memory_reserved(), "total": total}
    return {"of": "process", "peak": peak_of_process(), "total": None}


class RankMonitor(LossMonitor):
    """An OpenCLIP plugin that monitors the loss and the data that this rank cannot read.

    Staged copies of shards are read instead of the shards.
    """

    def __init__(self, start: Start, rank: int):
        self.run = start.run
        self.logs = start.logs
        self.rank = rank
        self.staged = StagedShards(Path(start.staged)) if start.staged else None
        counted = CountedSteps(self.run.slice_steps, self.run.accum_freq)
        super().__init__(counted, self.logs / STEPS if rank == 0 else None)
        self.shared_epoch = None  # OpenCLIP's, of shards: data-loading workers see it
        self.unreadable = self.logs / f"unreadable_{rank}.jsonl"

    def listing_unreadable(self):
        """A context in which the data that cannot be read is listed in a file of this rank."""
        from ..openclip.data import listing_unreadable

        epoch = self.counted.epoch if self.run.is_table else self.epoch_of_shards
        return listing_unreadable(self.unreadable, epoch, self.staged.name if self.staged else str)

    def epoch_of_shards(self) -> int:
        return self.shared_epoch.get_value()

    @hookimpl(tryfirst=True)
    def open_clip_check_options(self, args):
        args.images_checked = True  # before the ranks started, with --unreadable-max

    @hookimpl(wrapper=True)
    def open_clip_data_order(self, args, shared_epoch):
        self.shared_epoch = shared_epoch
        order = yield
        if order is None or self.staged is None:
            return order
        shards, samples = order
        return lambda names: self.staged.shards(shards(names)), samples

    @hookimpl(wrapper=True)
    def open_clip_create_loss(self, args):
        from open_clip import create_loss

        loss = yield
        self.loss = loss or create_loss(args)
        self.counted.resume(args.resume)
        return self

    def each_step(self, device: torch.device) -> None:
        """Raises StoppedEarly on all ranks if rank 0, which measures, finds no improvement.

        Collective with --patience."""
        dump_stacks_after(self.run.settings.stall_minutes)
        patience = self.run.settings.patience
        if patience and self.counted.is_new_epoch():
            folder = self.logs.parents[1]
            is_over = self.rank == 0 and bool(why_stopped_early(folder, patience))
            if any(self._sum([int(is_over)], device)):
                raise StoppedEarly

    def check_data(self, epoch: int, device: torch.device) -> None:
        """Raises TooMuchUnreadable if the ranks together could not read too much of a slice.

        Collective."""
        counts = self._sum(unreadable_of_slice(self.unreadable, epoch), device)
        if problem := too_much_unreadable(self.run, epoch, *counts, shards={}):
            raise TooMuchUnreadable(problem)

    def _sum(self, numbers: Sequence[int], device: torch.device) -> list[int]:
        """Returns each number, summed over the ranks. Collective."""
        numbers = torch.tensor(numbers, device=device)
        return begin_sum(numbers, "superclip run")().tolist()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
