"""A rank counts its steps by calls of the loss, and ends before non-finite
weights are saved."""

from types import SimpleNamespace

import pytest
import torch
from support import parametrize

from openclip_superclip.plans.run import Settings
from openclip_superclip.runs.loss_monitor import RankMonitor
from openclip_superclip.runs.recovery import NeedsUser


def monitor_of(folder):
    run = SimpleNamespace(slice_steps=2, accum_freq=3, settings=Settings(stall_minutes=0))
    return RankMonitor(SimpleNamespace(run=run, logs=folder), rank=1)


@parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_end_the_run_before_they_are_saved(number, tmp_path):
    monitor, model = monitor_of(tmp_path), torch.nn.BatchNorm1d(2)
    monitor.open_clip_epoch_end(model, 0)
    model.running_var[1] = number
    with pytest.raises(NeedsUser, match="the weights are not finite after slice 2"):
        monitor.open_clip_epoch_end(model, 1)


def test_the_data_of_an_epoch_is_checked_after_its_last_accumulated_batch(tmp_path):
    checked = []
    monitor = monitor_of(tmp_path)
    monitor.loss = lambda: {"loss": torch.tensor(1.0)}
    monitor.check_data = lambda epoch: checked.append((epoch, monitor.counted.step()))
    for _ in range(13):
        monitor()
    assert checked == [(0, 2), (1, 4)]
