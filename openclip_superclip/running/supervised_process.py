"""A process that is watched to its end, and that ends with the one that watches it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from ..parent_process import end_with_parent

PATIENCE = 10  # seconds that a process has to end once it is asked to


def run_to_end(command: list[str], output: Path, each_second: Callable[[], None]) -> int:
    """Runs `command` in a session of its own, its output in a file, and returns its exit code.

    The signals of a terminal or of SLURM so reach this process alone, which ends the command in order.
    """
    with open(output, "wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            preexec_fn=end_with_parent,
        )  # fmt: skip
    try:
        while True:
            try:
                return process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                each_second()
    finally:
        _end(process)


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()  # its children end with it
            process.wait()
