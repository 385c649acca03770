"""Counts of what the data loader's workers read, logged as they grow and when the process ends."""

import logging
from multiprocessing import Array
from multiprocessing.util import Finalize

FIRST_REPORT = 1000  # samples; then at ten, a hundred and a thousand times as many, and so on

WHAT_BECAME = {"use-short": "the short one stood in for it", "skip": "they were left out", "error": ""}


class CaptionCounts:
    """How many samples the workers of this rank read, how many had no long caption, and how many of these were cut."""

    def __init__(self, missing_long: str):
        self._what_became = WHAT_BECAME[missing_long]
        self._counts = Array("q", 5)  # samples, missing, long captions, cut, where they were cut; shared by the workers
        # Also at the end of a forked process, where atexit says nothing.
        Finalize(None, self.report, exitpriority=10)

    @property
    def num_samples(self) -> int:
        return self._counts[0]

    @property
    def num_missing(self) -> int:
        return self._counts[1]

    @property
    def num_long(self) -> int:
        return self._counts[2]

    @property
    def num_cut(self) -> int:
        return self._counts[3]

    def add_sample(self, missing: bool) -> None:
        with self._counts.get_lock():
            self._counts[0] += 1
            self._counts[1] += missing
            num_samples = self._counts[0]
        if num_samples >= FIRST_REPORT and str(num_samples).strip("0") == "1":
            self.report()

    def add_long(self, cut: bool, length: int) -> None:
        with self._counts.get_lock():
            self._counts[2] += 1
            self._counts[3] += cut
            self._counts[4] = length

    def report(self) -> None:
        """Logs the counts so far, if there are any."""
        num_samples, num_missing, num_long, num_cut, length = self._counts[:]
        if num_samples:
            logging.info(
                f"SuperCLIP: of {num_samples:,} samples read, {num_missing:,} had no long caption"
                + (f" ({self._what_became})" if num_missing else "")
                + (f"; {num_cut / num_long:.1%} of the long ones were cut at {length} tokens" if num_long else "")
            )
