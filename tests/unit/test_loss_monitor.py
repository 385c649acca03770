"""A rank counts its steps by calls of the loss, and ends before non-finite weights are saved."""

import math

import pytest
import torch

from openclip_superclip.runs.loss_monitor import CountedSteps, LossMonitor, NonFiniteLoss


def test_a_loss_that_is_no_number_ends_a_rank_before_a_checkpoint(tmp_path):
    values = iter([1.0, 1.0, math.nan])
    counted = CountedSteps(steps_of_epoch=16)
    counted.resume("logs/run/checkpoints/epoch_2.pt")
    monitor = LossMonitor(lambda: {"loss": torch.tensor(next(values))}, counted, tmp_path / "steps")
    monitor()
    monitor()
    with pytest.raises(NonFiniteLoss, match="loss is nan since step 35"):
        monitor()
    assert int((tmp_path / "steps").read_text()) == 34


def test_the_data_of_an_epoch_is_checked_after_its_last_accumulated_batch():
    checked = []
    monitor = LossMonitor(
        lambda: torch.tensor(1.0),
        CountedSteps(steps_of_epoch=2, accum_freq=3),
        check_data=lambda epoch, _: checked.append((epoch, monitor.counted.step())),
    )
    for _ in range(13):
        monitor()
    assert checked == [(0, 2), (1, 4)]
