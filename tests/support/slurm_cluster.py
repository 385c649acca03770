"""A real SLURM cluster of two nodes on this machine, for tests."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from openclip_superclip.runs.folder import RunFolder

from . import succeed
from .training_runs import processes_in, run_superclip

START = Path(__file__).parent / "slurm/start.sh"
FINAL = """
    BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY TIMEOUT
""".split()
ON_CPUS = "--nodes 2 --gpus-per-node 1 --device cpu"
CANNOT_BE_INSTALLED = 77  # start.sh's exit code


def may_unshare(*namespaces):
    """Returns whether this user may create such namespaces and mount file
    systems in them."""
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
    """A cluster that runs within `with` and is always stopped at its end;
    skips the test if this machine does not allow it."""

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

    def __enter__(self):
        started = subprocess.run(
            ["bash", START], env=self.environment, capture_output=True, text=True
        )
        if started.returncode == CANNOT_BE_INSTALLED:
            pytest.skip(started.stderr.strip())
        assert started.returncode == 0, started.stderr
        return self

    def __exit__(self, *_):
        os.kill(int((self.folder / "top.pid").read_text()), signal.SIGKILL)
        wait_until(lambda: not processes_in(self.folder), 10, "the cluster's processes to end")
        shutil.rmtree(self.folder)

    def call(self, command, *more, cwd=None):
        """Runs `command MORE` where SLURM's are, and returns what it
        printed."""
        words = [*shlex.split(command), *map(str, more)]
        return succeed(words, cwd=cwd, env=self.environment).stdout

    def job(self, number):
        """Returns what SLURM knows of a job."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.call(f"scontrol show job {number}")))

    def wait_until(self, condition, run, what):
        """Returns when the condition holds; an AssertionError, with its
        output, when the run's job has ended first."""

        def holds():
            if condition():
                return True
            job = json.loads((run / "submitted.json").read_text())["job"]
            if self.job(job)["JobState"] in FINAL and not condition():
                output = (run / f"slurm-{job}.out").read_text()
                raise AssertionError(f"the job ended while the test waited for {what}:\n{output}")
            return False

        wait_until(holds, 600, what, each=0.5)

    def wait(self, number):
        """Returns what SLURM knows of a job once it has ended."""
        wait_until(lambda: self.job(number)["JobState"] in FINAL, 600, f"job {number} to end")
        return self.job(number)

    def complete(self, number, output):
        """Returns the same of a job that must succeed; an AssertionError
        shows its output."""
        job = self.wait(number)
        assert job["JobState"] == "COMPLETED", output.read_text()
        return job


def wait_until(condition, seconds, what, each=0.1):
    """Returns when the condition holds; an AssertionError when it does not
    within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(each)


def write_setup(file, plugin):
    """Writes a --setup with which a job has a plugin."""
    file.write_text(f"export PYTHONPATH='{plugin}'\n")


def submit(cluster, recipe, run, flags, cwd=None):
    """Returns the number of the job that `superclip submit` starts.

    Nothing of this environment is handed on to the job, as on many
    clusters.
    """
    work = recipe.parent
    output = work / "submitted"
    output.unlink(missing_ok=True)
    command = ["submit", recipe, "--out", run, *shlex.split(flags)]
    variables = cluster.environment | {"SBATCH_EXPORT": "NONE"}
    code = run_superclip(command, output, cwd or work, **variables)
    printed = output.read_text()
    assert code == 0, printed
    return re.search(r"^job (\d+) is in the queue", printed, flags=re.MULTILINE)[1]


def attempts(run):
    """The starts of a run."""
    return RunFolder(run).attempts


def wait_for_slice(cluster, run, start, number):
    """Returns when the `start`-th start of a run trains its `number`-th
    slice."""

    def trains():
        if len(attempts(run)) <= start:
            return False
        log = run / attempts(run)[start]["ranks"] / "rank_0.log"
        return log.exists() and log.read_text().count("Start epoch ") >= number

    cluster.wait_until(trains, run, f"slice {number} of start {start}")
