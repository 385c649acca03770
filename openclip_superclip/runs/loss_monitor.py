"""A rank's loss: counts its steps, and ends the run before non-finite weights are saved."""

import contextlib
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import torch


class NonFiniteLoss(Exception):
    """The loss is NaN or infinite, and so are all weights after the step."""


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


class LossMonitor:
    """OpenCLIP's loss, which raises NonFiniteLoss within two steps of the first non-finite one.

    A GPU does not wait for this: a step's loss is checked at the next step. Only the last loss of
    an epoch is checked at once, and so is the epoch's data by `check_data`, because a checkpoint
    follows.
    """

    loss: Callable  # of OpenCLIP

    def __init__(self, counted: CountedSteps, steps_file: Path | None = None):
        self.counted = counted
        self.file = None  # for the completed steps, which rank 0 writes
        if steps_file is not None:
            self.file = os.open(steps_file, os.O_WRONLY | os.O_CREAT, 0o644)
        self.pending = None  # the loss to check: its step, its value, and the event of the copy

    def each_step(self, device: torch.device) -> None:
        """Called with each loss, before it is counted."""

    def check_data(self, epoch: int, device: torch.device) -> None:
        """Called at the end of each epoch."""

    def __call__(self, *args, **kwargs):
        losses = self.loss(*args, **kwargs)
        total = sum(losses.values())
        self.each_step(total.device)
        counted = self.counted
        epoch = counted.epoch()
        step = counted.step()
        counted.calls += 1
        if self.file is not None:
            # on a full disk, which the rank that fills it reports
            with contextlib.suppress(OSError):
                os.pwrite(self.file, f"{step:>20}".encode(), 0)
        self._check_pending()
        value = total.detach()
        copied = None
        if value.is_cuda:  # copied without waiting: the event marks its completion
            value = value.to("cpu", non_blocking=True)  # into pinned memory
            copied = torch.cuda.Event()
            copied.record()
        self.pending = step + 1, value, copied
        if copied is None or counted.is_new_epoch():
            self._check_pending()
        if counted.is_new_epoch():
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
