"""Commands of `superclip` as processes of a study."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..runs.child_processes import start_process

# `superclip`, which ends by SIGTERM with its parent
SUPERCLIP = (
    "import sys; from openclip_superclip.environment import end_with_parent; "
    "end_with_parent({signal}, {parent}); from openclip_superclip.__main__ import main; "
    "sys.exit(main(sys.argv[1:]))"
)


def run_superclip(
    arguments: Sequence[str],
    output: Path,
    is_to_stop: Callable[[], bool],
    *,
    one_thread: bool = False,
) -> tuple[int, float]:
    """Runs `superclip ARGUMENTS` and returns its exit code and CPU seconds, including those of its
    own processes.

    It runs in a session of its own, which signals of a terminal do not reach, and gets SIGTERM when
    this process ends, or when `is_to_stop`, which is called twice a second, returns True. Its
    output goes to the file `output`.
    """
    threads = {"OMP_NUM_THREADS": "1"} if one_thread else {}
    code = SUPERCLIP.format(parent=os.getpid(), signal=signal.SIGTERM.value)
    command = [sys.executable, "-c", code, *arguments]
    process = start_process(command, {**os.environ, **threads}, output)
    ended = 0
    try:
        while not ended:
            time.sleep(0.5)  # wait4, the only way to this child's CPU time, takes no timeout
            if stops := is_to_stop():
                process.terminate()
            ended, status, usage = os.wait4(process.pid, 0 if stops else os.WNOHANG)
    finally:
        if not ended:
            process.terminate()
            process.wait()
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
