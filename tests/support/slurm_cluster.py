"""A real SLURM cluster of two nodes on this machine, for tests."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .training_runs import processes_in

START = Path(__file__).parent / "slurm/start.sh"
FINAL = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
}
CANNOT_BE_INSTALLED = 77  # start.sh's exit code


def may_unshare(*namespaces: str) -> bool:
    """Tells whether this user may make such namespaces, and mount in them."""
    try:
        return (
            subprocess.run(
                ["unshare", "--mount", *namespaces, "true"], capture_output=True
            ).returncode
            == 0
        )
    except FileNotFoundError:
        return False


class Cluster:
    """A cluster that runs within `with` and is always stopped at its end; skips the test if this
    machine does not allow it."""

    def __init__(self):
        if not may_unshare("--net", "--uts", "--ipc", "--pid", "--fork"):
            pytest.skip(
                "a SLURM cluster lives in namespaces of this machine, which need root "
                "(CAP_SYS_ADMIN)"
            )
        # a short path, because it contains sockets
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        path = f"{self.folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
        settings = {"SLURM_TEST_DIR": str(self.folder), "SLURM_TEST_OWNER": str(os.getpid())}
        self.environment = {**os.environ, **settings, "PATH": path}

    def __enter__(self) -> "Cluster":
        started = subprocess.run(
            ["bash", START], env=self.environment, capture_output=True, text=True
        )
        if started.returncode == CANNOT_BE_INSTALLED:
            pytest.skip(started.stderr.strip())
        assert started.returncode == 0, started.stderr
        return self

    def __exit__(self, *_) -> None:
        os.kill(int((self.folder / "top.pid").read_text()), signal.SIGKILL)
        wait_until(lambda: not processes_in(self.folder), 10, "the cluster's processes to end")
        shutil.rmtree(self.folder)

    def call(self, *command, cwd: Path | None = None, **variables: str) -> str:
        """Runs a command where SLURM's are, and returns what it printed."""
        environment = self.environment | variables
        done = subprocess.run(
            [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """Returns what SLURM knows of a job."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.call("scontrol", "show", "job", number)))

    def wait_until(self, condition: Callable[[], bool], run: Path, what: str) -> None:
        """Returns when the condition holds; an AssertionError, with its output, when the run's
        job has ended first."""

        def holds() -> bool:
            if condition():
                return True
            submitted = next(
                folder for folder in (run, run.parent) if (folder / "submitted.json").exists()
            )
            job = json.loads((submitted / "submitted.json").read_text())["job"]
            if self.job(job)["JobState"] in FINAL and not condition():
                output = (submitted / f"slurm-{job}.out").read_text()
                raise AssertionError(f"the job ended while the test waited for {what}:\n{output}")
            return False

        wait_until(holds, 600, what, each=0.5)

    def wait(self, number: str, seconds: float = 600) -> dict[str, str]:
        """Returns what SLURM knows of a job once it has ended."""
        wait_until(lambda: self.job(number)["JobState"] in FINAL, seconds, f"job {number} to end")
        return self.job(number)


def wait_until(condition: Callable[[], bool], seconds: float, what: str, each: float = 0.1) -> None:
    """Returns when the condition holds; an AssertionError when it does not within so many
    seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(each)
