"""A rank counts its steps by calls of the loss, and ends before non-finite
weights are saved."""

from types import SimpleNamespace

import torch

from openclip_superclip.plans.run import Settings
from openclip_superclip.runs.loss_monitor import RankMonitor


def test_the_data_of_an_epoch_is_checked_after_its_last_accumulated_batch(tmp_path):
    checked = []
    run = SimpleNamespace(slice_steps=2, accum_freq=3, settings=Settings(stall_minutes=0))
    monitor = RankMonitor(SimpleNamespace(run=run, logs=tmp_path), rank=1)
    monitor.loss = lambda: {"loss": torch.tensor(1.0)}
    monitor.check_data = lambda epoch: checked.append((epoch, monitor.counted.step()))
    for _ in range(13):
        monitor()
    assert checked == [(0, 2), (1, 4)]
