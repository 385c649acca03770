"""A rank counts its steps by calls of the loss, and ends before non-finite
weights are saved."""

import torch

from openclip_superclip.runs.loss_monitor import CountedSteps, LossMonitor


def test_the_data_of_an_epoch_is_checked_after_its_last_accumulated_batch():
    checked = []
    monitor = LossMonitor(CountedSteps(steps_of_epoch=2, accum_freq=3))
    monitor.loss = lambda: {"loss": torch.tensor(1.0)}
    monitor.check_data = lambda epoch, _: checked.append((epoch, monitor.counted.step()))
    for _ in range(13):
        monitor()
    assert checked == [(0, 2), (1, 4)]
