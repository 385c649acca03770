"""One rank of a run: trains as `superclip train`, counts its steps, and ends if the loss is not
finite.

python -m openclip_superclip.runs.rank LOGS/node_0.json
"""

import contextlib
import faulthandler
import math
import os
import re
import resource
import sys
import time
import traceback
from pathlib import Path

import torch

from ..checkpoints import run_outputs
from ..checkpoints.weights import holds_numbers
from ..environment import end_with_parent, replaced
from ..errors import InputError
from ..files import write_json
from ..hooks import hookimpl
from ..method.distributed import begin_sum, world_size
from ..openclip.train import register_plugin, train
from .process import last_line
from .progress import FIRST_STEP, STEPS, too_much_unreadable, unreadable_of_slice
from .recovery import DATA, LOSS, USER, Failure, kind_of
from .run import Run, Start
from .stage import StagedShards


class Refused(Exception):
    """Training ended with an exit code; the message is the last line of the rank's output."""


def main(file: str) -> int:
    """Trains as the file of a Start describes, and returns the exit code; an exception is first
    written to a file."""
    end_with_parent()
    faulthandler.enable()
    start, rank = Start.open(file), int(os.environ["RANK"])
    dump_stacks_after(start.run.settings.stall_minutes, first=True)
    try:
        _train(start, rank)
        return 0
    except Exception as error:
        _failure(error, rank).write(start.logs / f"rank_{rank}.error.json")
        if isinstance(error, Refused):
            return 1
        raise


def dump_stacks_after(minutes: float, first: bool = False) -> None:
    """Makes this process write the Python stacks of its threads after so many minutes, unless it
    is called again."""
    if minutes:
        faulthandler.dump_traceback_later(60 * (max(minutes, FIRST_STEP) if first else minutes))


def _failure(error: Exception, rank: int) -> Failure:
    if isinstance(error, NonFiniteLoss):
        return Failure("", str(error), timestamp=time.time(), kind=LOSS)
    if isinstance(error, TooMuchUnreadable):
        return Failure("", str(error), timestamp=time.time(), kind=DATA)
    if isinstance(error, Refused):
        return Failure.here(f"rank {rank}", str(error))
    message = f"{type(error).__name__}: {error}"
    kind = USER if isinstance(error, InputError) else kind_of(message)
    return Failure.here(f"rank {rank}", message, traceback.format_exc(), kind)


def _train(start: Start, rank: int) -> None:
    """Trains; raises Refused if training ends with another exit code than 0."""
    counter = StepCounter(start, rank)
    register_plugin(counter)
    try:
        with counter.listing_unreadable():
            code = measured(start, rank) if start.measures else train(start.arguments)
    except SystemExit as exit:
        code = exit.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        raise Refused(last_line(start.logs / f"rank_{rank}.log"))
    last = run_outputs.checkpoints(start.logs.parents[1] / "checkpoints").get(start.run.num_slices)
    if rank == 0 and last and not holds_numbers(last):
        raise NonFiniteLoss(f"the weights are not finite after the last step, {start.run.steps}")


def measured(start: Start, rank: int) -> int:
    """Trains and returns the exit code; writes the measures into a file if it is 0."""
    save, saved = torch.save, []

    def timed_save(content, file, *args, **kwargs):
        start = time.perf_counter()
        save(content, file, *args, **kwargs)
        if isinstance(file, str | os.PathLike):
            saved.append({"seconds": time.perf_counter() - start, "bytes": os.path.getsize(file)})

    with replaced(torch, save=timed_save):
        code = train(start.arguments)
    if not code:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )
        # without data-loading workers
        memory = {"of": "process", "name": None, "peak": peak, "total": None}
        if torch.cuda.is_initialized():
            card, peak = (
                torch.cuda.get_device_properties(torch.cuda.current_device()),
                torch.cuda.max_memory_reserved(),
            )
            memory = {"of": "GPU", "name": card.name, "peak": peak, "total": card.total_memory}
        write_json(
            start.logs / f"rank_{rank}.measures.json", {"memory": memory, "checkpoints": saved}
        )
    return code


class TooMuchUnreadable(Exception):
    """The ranks could not read more of a slice than --unreadable-max allows."""


class NonFiniteLoss(Exception):
    """The loss is NaN or infinite, and so are all weights after the step."""


class StepCounter:
    """An OpenCLIP plugin that monitors the data and the loss.

    Rank 0 writes the number of completed steps into the folder of logs, every rank the data that it
    could not read. Staged copies of shards are read instead of the shards.
    """

    def __init__(self, start: Start, rank: int):
        self.run, self.logs, self.rank = start.run, start.logs, rank
        self.staged = StagedShards(Path(start.staged)) if start.staged else None
        self.epoch = None  # OpenCLIP's shared epoch
        self.unreadable = self.logs / f"unreadable_{rank}.jsonl"
        if self.run.is_table:
            self.epoch = CountedEpoch(self.run.slice_steps * self.run.accum_freq)

    def listing_unreadable(self):
        """A context in which the data that cannot be read is listed in a file of this rank."""
        from ..openclip.data import listing_unreadable

        epoch = self.epoch.get_value if self.run.is_table else self.shared_epoch
        return listing_unreadable(self.unreadable, epoch, self.staged.name if self.staged else str)

    def shared_epoch(self) -> int:
        """Returns the current epoch of shards."""
        return self.epoch.get_value()

    @hookimpl(tryfirst=True)
    def open_clip_check_options(self, args):
        args.images_checked = True  # before the ranks started, with --unreadable-max

    @hookimpl(wrapper=True)
    def open_clip_data_order(self, args, shared_epoch):
        self.epoch = shared_epoch
        order = yield
        if order is None or self.staged is None:
            return order
        shards, samples = order
        return lambda names: self.staged.shards(shards(names)), samples

    @hookimpl(wrapper=True)
    def open_clip_create_loss(self, args):
        from open_clip import create_loss

        loss = yield
        run: Run = self.run
        epoch = self.shared_epoch
        if run.is_table:
            self.epoch.begin(args.resume)
            epoch = self.epoch.count
        steps_file = self.logs / STEPS if self.rank == 0 else None
        return LossMonitor(
            loss or create_loss(args),
            epoch,
            run.slice_steps,
            run.accum_freq,
            steps_file,
            self._check_data,
            lambda: dump_stacks_after(run.settings.stall_minutes),
        )

    def _check_data(self, epoch: int, device: torch.device) -> None:
        """Raises TooMuchUnreadable if the ranks together could not read too much of a slice.

        Collective."""
        counts = torch.tensor(unreadable_of_slice(self.unreadable, epoch), device=device)
        if world_size() > 1:
            counts = begin_sum(counts, "unreadable")()
        if problem := too_much_unreadable(self.run, epoch, *counts.tolist()):
            raise TooMuchUnreadable(problem)


class CountedEpoch:
    """The epoch of a table, which OpenCLIP does not share, counted by calls of the loss.

    `calls` are an epoch.
    """

    def __init__(self, calls: int):
        self.calls_of_epoch = max(1, calls)
        self.first = self.calls = 0

    def begin(self, resume: str | None) -> None:
        """Continues after the epoch of the checkpoint `resume`."""
        epoch = re.search(r"epoch_(\d+)\.pt$", resume or "")
        self.first = int(epoch[1]) if epoch else 0

    def get_value(self) -> int:
        return self.first + self.calls // self.calls_of_epoch

    def count(self) -> int:
        """Counts a call of the loss and returns its epoch."""
        epoch = self.get_value()
        self.calls += 1
        return epoch


class LossMonitor:
    """OpenCLIP's loss, which raises NonFiniteLoss within two steps of the first non-finite one.

    A GPU does not wait for this: a step's loss is checked at the next step. Only the last loss of
    an epoch is checked at once, and so is the epoch's data, because a checkpoint follows.
    `each_step` is called first.
    """

    def __init__(
        self,
        loss,
        epoch,
        steps_per_epoch: int,
        accum_freq: int,
        steps_file: Path | None,
        check_data=lambda *_: None,
        each_step=lambda: None,
    ):
        self.loss, self.epoch, self.steps_per_epoch, self.accum_freq = (
            loss,
            epoch,
            steps_per_epoch,
            accum_freq,
        )
        self.check_data, self.each_step = check_data, each_step
        self.file = (
            None if steps_file is None else os.open(steps_file, os.O_WRONLY | os.O_CREAT, 0o644)
        )
        self.of_epoch, self.calls = None, 0
        self.pending = None  # the loss to check: its step, its value, and the event of the copy

    def __call__(self, *args, **kwargs):
        self.each_step()
        losses = self.loss(*args, **kwargs)
        epoch = self.epoch()
        if epoch != self.of_epoch:
            self.of_epoch, self.calls = epoch, 0
        step = epoch * self.steps_per_epoch + self.calls // self.accum_freq
        self.calls += 1
        if self.file is not None:
            # on a full disk, which the rank that fills it reports
            with contextlib.suppress(OSError):
                os.pwrite(self.file, f"{step:>20}".encode(), 0)
        self._check_pending()
        total = sum(losses.values()) if isinstance(losses, dict) else losses
        value, copied = total.detach(), None
        if value.is_cuda:  # copied without waiting: the event marks its completion
            value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(
                value, non_blocking=True
            )
            copied = torch.cuda.Event()
            copied.record()
        self.pending = step + 1, value, copied
        is_last = self.calls == self.steps_per_epoch * self.accum_freq
        if not total.is_cuda or is_last:
            self._check_pending()
        if is_last:
            self.check_data(epoch, total.device)
        return losses

    def _check_pending(self) -> None:
        if self.pending is None:
            return
        step, value, copied = self.pending
        self.pending = None
        if copied is not None:
            copied.synchronize()
        if not math.isfinite(value.item()):
            raise NonFiniteLoss(f"loss is {value.item()} since step {step}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
