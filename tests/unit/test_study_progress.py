"""The remaining time of a study never rises and ends at zero."""

import itertools

import pytest

from openclip_superclip.lab.studies.progress_bar import RemainingTime


@pytest.mark.parametrize("before", [0, 3000])
def test_the_remaining_time_falls_although_the_speed_swings(before):
    remaining, shown, samples, now = RemainingTime(10_000), [], before, 0.0
    for seconds in itertools.cycle([1, 1, 20, 1, 60]):  # for 64 samples
        shown.append(remaining.update(samples, now))
        if samples >= 10_000:
            break
        samples, now = min(samples + 64, 10_000), now + seconds
    known = [seconds for seconds in shown if seconds is not None]
    assert known == sorted(known, reverse=True)
    assert len(known) > 0.9 * len(shown)
    assert known[-1] == 0
    assert shown[0] is shown[1] is None


def test_the_remaining_time_of_a_steady_study_is_right():
    remaining = RemainingTime(1000)
    for second in range(101):
        seconds = remaining.update(10 * second, float(second))
        if seconds is not None:
            assert seconds == pytest.approx(100 - second, rel=0.35)
    assert seconds == 0
