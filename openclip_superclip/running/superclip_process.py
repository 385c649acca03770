"""A `superclip` command in a process of its own, watched to its end, and the CPU time that it took."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..parent_process import end_with_parent


def run_superclip(
    arguments: Sequence[str], output: Path, one_thread: bool, is_to_stop: Callable[[], bool]
) -> tuple[int, float]:
    """Runs `superclip ARGUMENTS` and returns its exit code and CPU seconds, those of its own processes among them.

    It is in a session of its own, which the signals of a terminal do not reach, and is asked to end by SIGTERM where
    this process ends or an exception passes.

    Args:
        output: the file of what it prints.
        one_thread: of a CPU.
        is_to_stop: called twice a second; where it says so the process is asked to end, and waited for.
    """
    threads = {"OMP_NUM_THREADS": "1"} if one_thread else {}
    with open(output, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "openclip_superclip", *arguments], env={**os.environ, **threads},
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=lambda: end_with_parent(signal.SIGTERM),
        )  # fmt: skip
    ended = 0
    try:
        while not ended:
            time.sleep(0.5)  # wait4, which alone tells this child's CPU time, takes no timeout
            if is_to_stop():
                process.terminate()
                ended, status, usage = os.wait4(process.pid, 0)
            else:
                ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    finally:
        if not ended:
            process.terminate()
            process.wait()
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
