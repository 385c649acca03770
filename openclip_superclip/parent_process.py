"""The end of a process with the one that started it."""

import ctypes
import signal


def end_with_parent(death_signal: int = signal.SIGKILL) -> None:
    """Has the kernel end this process when its parent dies, so that nothing goes on that is given up."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux alone
    if prctl:
        prctl(1, int(death_signal))
