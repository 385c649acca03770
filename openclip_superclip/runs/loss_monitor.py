"""A rank's monitor: counts its steps, and ends the run before non-finite weights, or too much
unreadable data, are saved."""

import contextlib
import faulthandler
import math
import os
import re

import torch

from ..checkpoints.trainer_files import RECORD
from ..errors import InputError
from ..files import read_json
from ..hooks import hookimpl
from ..method.distributed import begin_sum
from ..method.finite_weights import is_finite_on_all_ranks
from .child_processes import Start
from .progress import STEPS
from .recovery import NeedsUser
from .unreadable import check_unreadable, unreadable_of_slice

FIRST_STEP = 30  # minutes that the first step may take, at least


class CountedSteps:
    """The steps and epochs of a rank, counted by the calls of the loss from the beginning of the
    run: OpenCLIP shares no epoch of a table."""

    def __init__(self, steps_of_epoch: int, accum_freq: int = 1):
        self.accum_freq = accum_freq
        self.calls_of_epoch = max(1, steps_of_epoch * accum_freq)
        self.calls = 0

    def resume(self, checkpoint: str | None) -> None:
        """Continues after the epoch of a checkpoint."""
        epoch = re.search(r"epoch_(\d+)\.pt$", checkpoint or "")
        self.calls = int(epoch[1]) * self.calls_of_epoch if epoch else 0

    def epoch(self) -> int:
        return self.calls // self.calls_of_epoch

    def step(self) -> int:
        return self.calls // self.accum_freq

    def is_new_epoch(self) -> bool:
        return self.calls % self.calls_of_epoch == 0


class RankMonitor:
    """An OpenCLIP plugin that monitors the loss and the data that this rank cannot read.

    It replaces the loss by itself, and raises NeedsUser within two steps of the first
    non-finite one. A GPU does not wait for this: a step's loss is checked at the next step. Only
    the last loss of an epoch is checked at once, and so is the epoch's data, because a checkpoint
    follows.
    """

    def __init__(self, start: Start, rank: int):
        self.run = start.run
        self.logs = start.logs
        self.counted = CountedSteps(self.run.slice_steps, self.run.accum_freq)
        self.steps_file = None  # for the completed steps
        if rank == 0:
            self.steps_file = os.open(self.logs / STEPS, os.O_WRONLY | os.O_CREAT, 0o644)
        self.loss = None  # OpenCLIP's, and its device
        self.device = None
        self.pending = None  # the loss to check: its step, its value, and the event of the copy
        self.shared_epoch = None  # OpenCLIP's, of shards: data-loading workers see it
        self.unreadable = self.logs / f"unreadable_{rank}.jsonl"
        self._end_unless_called_again(FIRST_STEP)

    def _end_unless_called_again(self, least: float = 0) -> None:
        """Makes this process end after --stall-minutes, `least` at least, with the Python stacks
        of its threads, unless it is called again."""
        minutes = self.run.settings.stall_minutes
        if minutes:
            faulthandler.dump_traceback_later(60 * max(minutes, least), exit=True)

    def listing_unreadable(self):
        """A context in which the data that cannot be read is listed in a file of this rank."""
        from ..trainer.data import listing_unreadable

        epoch = self.counted.epoch if self.run.is_table else self.epoch_of_shards
        return listing_unreadable(self.unreadable, epoch)

    def epoch_of_shards(self) -> int:
        return self.shared_epoch.get_value()

    @hookimpl(tryfirst=True)
    def open_clip_check_options(self, args):
        # what the first node has found in the data, with --unreadable-max
        check = read_json(self.logs.parents[1] / RECORD)["data_check"]
        args.in_run = {name: check[name] for name in ("num_samples", "num_trained", "num_empty")}

    @hookimpl(wrapper=True)
    def open_clip_data_order(self, args, shared_epoch):
        self.shared_epoch = shared_epoch
        return (yield)

    @hookimpl(tryfirst=True)
    def open_clip_epoch_end(self, model, epoch):
        if not is_finite_on_all_ranks(model, self.device):  # also without --superclip
            raise NeedsUser(f"the weights are not finite after slice {epoch + 1}")

    @hookimpl(wrapper=True)
    def open_clip_create_loss(self, args):
        from open_clip import create_loss

        loss = yield
        self.loss = loss or create_loss(args)
        self.device = args.device
        self.counted.resume(args.resume)
        return self

    def __call__(self, *args, **kwargs):
        losses = self.loss(*args, **kwargs)
        total = sum(losses.values())
        self._end_unless_called_again()
        counted = self.counted
        epoch = counted.epoch()
        step = counted.step()
        counted.calls += 1
        if self.steps_file is not None:
            # on a full disk, which the rank that fills it reports
            with contextlib.suppress(OSError):
                os.pwrite(self.steps_file, f"{step:>20}".encode(), 0)
        self._check_pending()
        value = total.detach()
        copied = None
        if value.is_cuda:  # copied without waiting: the event marks its completion
            value = value.to("cpu", non_blocking=True)  # into pinned memory
            copied = torch.cuda.Event()
            copied.record()
        self.pending = step + 1, value, copied
        ends_epoch = counted.is_new_epoch()
        if copied is None or ends_epoch:
            self._check_pending()
        if ends_epoch:
            self.check_data(epoch)
        return losses

    def _check_pending(self) -> None:
        if self.pending is None:
            return
        step, value, copied = self.pending
        self.pending = None
        if copied is not None:
            copied.synchronize()
        if not math.isfinite(value.item()):
            raise NeedsUser(f"loss is {value.item()} since step {step}")

    def check_data(self, epoch: int) -> None:
        """Raises NeedsUser if the ranks together could not read too much of a slice.

        Collective."""
        counts = self._sum(*unreadable_of_slice(self.unreadable, epoch))
        try:
            check_unreadable(self.run, epoch, *counts, shards={})
        except InputError as error:  # which OpenCLIP's launcher would print
            raise NeedsUser(str(error)) from None

    def _sum(self, *numbers: int) -> list[int]:
        """Returns each number, summed over the ranks. Collective."""
        on_device = torch.tensor(numbers, device=self.device)
        return begin_sum(on_device, "superclip run")().tolist()
