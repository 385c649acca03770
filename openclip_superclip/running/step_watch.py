"""Watches every step of a rank from within: how many there were, and whether their loss is still a number."""

import contextlib
import math
import os
import re
from collections import deque
from pathlib import Path

import torch
from torch import Tensor

from ..config import Config, config_from
from ..data.staged_shards import StagedShards
from ..data.table_columns import Columns, is_table_file
from ..hooks import hookimpl
from ..planning.plan import openclip_steps
from ..planning.table_data import count_rows, table_steps

STEPS = "steps"  # the first rank's file


class LossIsNoNumber(Exception):
    """The loss is NaN or infinite, and every weight with it after the step."""


class StepWatch:
    """A plugin of OpenCLIP's that stands around the training's data and its loss, whichever they are.

    Args:
        logs: the folder of this start's ranks: the first rank writes the number of whole steps there, each of them what
            it could not read.
        rank: of this process.
        staged: copies of shards on this node, to be read in their place.
    """

    def __init__(self, logs: Path, rank: int, staged: StagedShards | None = None):
        self.logs, self.rank, self.staged = logs, rank, staged
        self.epoch = None  # OpenCLIP's shared epoch

    @hookimpl(wrapper=True)
    def open_clip_data_order(self, args, shared_epoch):
        from ..data.unreadable import list_unreadable

        self.epoch = shared_epoch
        staged = self.staged
        list_unreadable(self.logs / f"unreadable_{self.rank}.jsonl", shared_epoch, staged.name if staged else str)
        order = yield
        if order is None or staged is None:
            return order
        shards, samples = order
        return lambda names: staged.shards(shards(names)), samples

    @hookimpl(wrapper=True)
    def open_clip_create_loss(self, args):
        from open_clip import create_loss

        loss = yield
        sizes = (args.batch_size, args.world_size)
        if is_table_file(args.train_data):
            config = config_from(vars(args)) or Config()
            columns = Columns(args.csv_separator, args.csv_img_key, args.csv_caption_key)
            steps = table_steps(count_rows(args.train_data, columns, config), *sizes, args.accum_freq)
            self.epoch = CountedEpoch(args.resume, steps * args.accum_freq)
        else:
            steps = openclip_steps(args.train_num_samples, *sizes, args.workers, args.accum_freq)
        steps_file = self.logs / STEPS if self.rank == 0 else None
        return WatchedLoss(loss or create_loss(args), self.epoch, steps, args.accum_freq, steps_file)


class CountedEpoch:
    """The epoch of a table, which OpenCLIP does not share: counted by the calls of the loss.

    Args:
        resume: the checkpoint that training goes on from, None for none.
        calls: of the loss in an epoch.
    """

    def __init__(self, resume: str | None, calls: int):
        found = re.search(r"epoch_(\d+)\.pt$", resume or "")
        self.first, self.calls_of_epoch, self.calls = int(found[1]) if found else 0, max(1, calls), 0

    def get_value(self) -> int:
        self.calls += 1
        return self.first + (self.calls - 1) // self.calls_of_epoch


class WatchedLoss:
    """OpenCLIP's loss, which raises LossIsNoNumber within two steps of the first that is none.

    No GPU waits for this: a step's loss is looked at when the next one's is asked for. The last of an epoch is looked
    at as it comes, for a checkpoint follows.
    """

    def __init__(self, loss, epoch, steps_per_epoch: int, accum_freq: int, steps_file: Path | None):
        self.loss, self.epoch, self.steps_per_epoch, self.accum_freq = loss, epoch, steps_per_epoch, accum_freq
        self.file = None if steps_file is None else os.open(steps_file, os.O_WRONLY | os.O_CREAT, 0o644)
        self.of_epoch, self.calls = None, 0
        self.seen = deque()  # of each loss that was not yet looked at: its step, its value, and the copy's end

    def __call__(self, *args, **kwargs):
        losses = self.loss(*args, **kwargs)
        epoch = self.epoch.get_value()
        if epoch != self.of_epoch:
            self.of_epoch, self.calls = epoch, 0
        before = self.calls // self.accum_freq
        self.calls += 1
        self._tell(epoch * self.steps_per_epoch + before)
        total = sum(losses.values()) if isinstance(losses, dict) else losses
        self.seen.append((epoch * self.steps_per_epoch + before + 1, *_on_its_way(total.detach())))
        self._look(everything=self.calls == self.steps_per_epoch * self.accum_freq)
        return losses

    def _look(self, everything: bool) -> None:
        while self.seen and (everything or len(self.seen) > 1 or self.seen[0][2] is None):
            step, value, copied = self.seen.popleft()
            if copied is not None:
                copied.synchronize()
            if not math.isfinite(value.item()):
                raise LossIsNoNumber(f"loss is {value.item()} since step {step}")

    def _tell(self, num_steps: int) -> None:
        if self.file is not None:
            with contextlib.suppress(OSError):  # on a full disk, of which the rank that fills it tells
                os.pwrite(self.file, f"{num_steps:>20}".encode(), 0)


def _on_its_way(value: Tensor) -> tuple[Tensor, object]:
    """Returns the value where it can be read without waiting for the GPU, and the event after which it can."""
    if not value.is_cuda:
        return value, None
    here = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    here.copy_(value, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return here, copied


def read_steps(steps_file: Path) -> int | None:
    """Returns how many steps a rank has told of, None before the first."""
    with contextlib.suppress(OSError, ValueError):
        return int(steps_file.read_text())
    return None
