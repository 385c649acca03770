"""`superclip` in a fork of this process, which has imported what takes seconds to import."""

import contextlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from openclip_superclip.__main__ import main

PATIENCE = 600  # seconds


def run_superclip(arguments, output: Path, cwd: Path, **variables: str) -> int:
    """Runs `superclip ARGUMENTS` to its end, what it prints added to a file, and returns its exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        _run([*map(str, arguments)], output, cwd, variables)
    deadline = time.monotonic() + PATIENCE
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise AssertionError(f"superclip {arguments[0]} has not ended: {output.read_text()}")
        time.sleep(0.02)


def _run(arguments: list[str], output: Path, cwd: Path, variables: dict[str, str]) -> None:
    """Runs it in the fork, and ends that."""
    code = 1
    try:
        os.setsid()
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for standard in (1, 2):
            os.dup2(file, standard)
        sys.stdout, sys.stderr = (os.fdopen(one, "w", buffering=1, closefd=False) for one in (1, 2))
        os.chdir(cwd)
        os.environ.update(variables)
        try:
            code = main(arguments)
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
        except BaseException:
            traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
