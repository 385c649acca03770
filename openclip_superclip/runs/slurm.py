"""SLURM: the node of this process, the queue, and job scripts: slurm/train.sbatch filled in."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from braceexpand import braceexpand

from ..errors import CONTROL, InputError, printable
from ..files import shipped_folder, write_text

FIRST_SPECIAL_STEP = 0xFFFFFFF0  # SLURM's numbers of the batch script's and salloc's own steps
# variables of the job in which a job is submitted
OF_JOB = re.compile(r"SLURM_(?!CONF|JWT|SACK|CLUSTERS)")
TIME = "24:00:00"  # the default of --time
SETUP = "setup.sh"  # the copy of --setup that a folder keeps


@dataclass(frozen=True)
class Placement:
    """One machine outside SLURM, or one node of a step of a job."""

    num_nodes: int = 1
    node: int = 0
    job: str | None = None  # SLURM's number, ARRAY_TASK for the task of an array
    restarts: int = 0  # how often SLURM has requeued the job
    step: str | None = None
    master_addr: str = "127.0.0.1"
    master_port: int = 0
    gpus: int = 0  # of this node, if set by SLURM

    def name_of_start(self, num_earlier: int) -> str:
        """Returns the name of this start of a run, equal on all nodes, given the number of earlier
        starts.

        Earlier starts only count on a single node, because a shell there can start the run again
        within the same step.
        """
        return (
            f"local-{num_earlier}"
            if self.num_nodes == 1
            else f"{self.job}.{self.step}-{self.restarts}"
        )


def find_placement(environment: Mapping[str, str] = os.environ) -> Placement:
    """Returns the node of this process; InputError if srun does not start one process per node, or
    for a variable without a number."""

    def number(name: str, default: str = "") -> int:
        text = environment.get(name) or default
        if not text.isdecimal():
            raise InputError(f"{name} is {text!r}; expected a number, as SLURM sets it")
        return int(text)

    # SLURM_JOB_ID of one task of an array is also the number of the whole array
    job = environment.get("SLURM_ARRAY_JOB_ID") or environment.get("SLURM_JOB_ID")
    if not job:
        return Placement()
    if task := environment.get("SLURM_ARRAY_TASK_ID"):
        job = f"{job}_{task}"
    placement = Placement(
        job=job,
        restarts=number("SLURM_RESTART_COUNT", "0"),
        gpus=number("SLURM_GPUS_ON_NODE", "0"),
    )
    step = environment.get("SLURM_STEP_ID", "")
    if not step.isdecimal() or int(step) >= FIRST_SPECIAL_STEP:
        num_nodes = number("SLURM_JOB_NUM_NODES", "1")
        if num_nodes > 1:
            raise InputError(
                f"job {job} has {num_nodes} nodes, and this process would use one of them: "
                "start it with srun --ntasks-per-node=1, as slurm/train.sbatch does"
            )
        return placement
    num_nodes = number("SLURM_STEP_NUM_NODES")
    num_tasks = number("SLURM_STEP_NUM_TASKS")
    if num_tasks != num_nodes:
        raise InputError(
            f"srun starts {num_tasks} processes on {num_nodes} nodes; expected one per node "
            "(--ntasks-per-node=1), which starts a process for each GPU itself"
        )
    master_addr = environment.get("MASTER_ADDR")
    if num_nodes > 1 and not master_addr:
        raise InputError(
            "MASTER_ADDR is not set: expected the first node's name, as slurm/train.sbatch "
            "exports it"
        )
    return replace(
        placement,
        num_nodes=num_nodes,
        node=number("SLURM_NODEID"),
        step=step,
        master_addr=master_addr or "127.0.0.1",
        master_port=number("MASTER_PORT", "29500"),
    )


def minutes_of(time: str) -> float | None:
    """Returns the minutes of sbatch's --time: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S; None for
    another text."""
    days, has_days, rest = time.rpartition("-")
    parts = rest.split(":")
    if not has_days and len(parts) < 3:
        parts.insert(0, "0")  # hours
    try:
        hours, minutes, seconds = map(int, [*parts, "0", "0"][:3])
        return 60 * (24 * int(days or 0) + hours) + minutes + seconds / 60
    except ValueError:  # such as UNLIMITED
        return None


def hosts() -> list[str]:
    """Returns the names of the run's nodes, from SLURM's list, such as node[01-03,7],login; without
    scontrol, which is missing in containers."""
    nodes = os.environ.get("SLURM_STEP_NODELIST") or this_host()
    pattern = re.sub(r"\[(.*?)\]", _braces, nodes)
    # the outer braces split the list at its commas; the empty last name makes it a list of two
    return [name for name in braceexpand(f"{{{pattern},}}") if name]


def _braces(numbers: re.Match) -> str:
    """Returns a shell's pattern of SLURM's numbers: {{01..03},7} for [01-03,7]."""
    ranges = re.sub(r"(\d+)-(\d+)", r"{\1..\2}", numbers[1])
    return f"{{{ranges}}}" if "," in ranges else ranges


def this_host() -> str:
    """Returns the name of this machine in SLURM."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


class QueuedJob(NamedTuple):
    """A pending or running job, or task of an array."""

    name: str  # its number, ARRAY_TASK for the task of an array
    state: str  # PENDING, RUNNING, …
    reason: str  # why it is pending


def time_left() -> float | None:
    """Returns the seconds until the job's time limit, None without one."""
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    return int(end) - time.time() if end.isdecimal() else None


def my_jobs() -> dict[str, QueuedJob] | None:
    """Returns this user's jobs by their names; {} without squeue, and None if it does not
    answer."""
    try:
        queue = _call("squeue", "--me", "--array", "--noheader", "--format=%i|%T|%r")
    except OSError:
        return {}
    if queue.returncode:
        return None
    jobs = [QueuedJob(*line.strip().split("|", 2)) for line in queue.stdout.splitlines() if line]
    return {job.name: job for job in jobs}


def has_job(job: str) -> bool:
    """Returns whether SLURM has a job, of any user, in its queue; also true if SLURM does not
    answer."""
    try:
        queue = _call("squeue", "--noheader", "--format=%T", "--jobs", job)
    except OSError:
        return True
    return bool(queue.stdout.strip()) or (
        queue.returncode != 0 and "Invalid job id" not in queue.stderr
    )


def cancel(job: str) -> None:
    """Cancels a job; InputError if SLURM refuses."""
    done = _call("scancel", job)
    if done.returncode:
        raise InputError(f"scancel {job} failed: {' '.join(done.stderr.split())}")


def _call(*command: str, **options) -> subprocess.CompletedProcess:
    """Returns a command's exit code and output; OSError if it cannot be started here."""
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def _check_lines(lines: Sequence[str]) -> None:
    """Raises InputError for a line with control characters: after a line break in a comment, even
    in quotes, bash would run the rest."""
    for line in lines:
        if CONTROL.search(line):
            raise InputError(
                f"{printable(line.strip())} contains control characters, which a job's script must "
                "not: give this option, or --out or the recipe for --job-name, another value"
            )


@dataclass(frozen=True)
class SlurmJob:
    """A job's script and its file."""

    file: Path
    text: str

    def command(self) -> list[str]:
        """Returns the sbatch command, which prints the job's number."""
        return ["sbatch", "--parsable", str(self.file)]

    def submit(self) -> str:
        """Writes the script, submits the job and returns its number; InputError if that fails."""
        write_text(self.file, self.text)
        environment = {name: value for name, value in os.environ.items() if not OF_JOB.match(name)}
        try:
            done = _call(*self.command(), env=environment)
        except OSError as error:
            reason = "was not found here"
            if shutil.which("sbatch", mode=os.F_OK):
                reason = f"cannot be started here ({error.strerror})"
            raise InputError(
                f"sbatch {reason}: submit on a login node, with sbatch "
                f"{shlex.quote(str(self.file))}"
            ) from error
        if done.returncode:
            raise InputError(f"sbatch refused {self.file}: {' '.join(done.stderr.split())}")
        return done.stdout.strip().partition(";")[0]


@dataclass(frozen=True)
class SlurmRequest:
    """The SLURM options that `superclip submit` and `superclip study --slurm` share, by their
    names there."""

    device: str
    nodes: int
    gpus_per_node: int  # processes of device "cpu"
    gpu_type: str | None = None  # SLURM's name of the GPUs
    cpus_per_node: int | None = None  # of shared nodes
    sbatch: Mapping[str, str] = field(default_factory=dict)  # further options of sbatch
    setup: Path | None = None  # a bash file that the job sources first

    def keep_setup(self, folder: Path) -> None:
        """Copies the file of --setup into the folder from which the job sources it."""
        copy = folder / SETUP
        if self.setup and self.setup.resolve() != copy.resolve():
            copy.unlink(missing_ok=True)
            copy.touch(mode=0o600)
            shutil.copy(self.setup, copy)  # with its mode: it may contain secrets

    def training(
        self,
        file: Path,
        name: str,
        runs: Sequence[Path],
        command: Sequence[str] = ("run",),
        array: str = "",
    ) -> SlurmJob:
        """Returns a job that trains or rehearses runs, given as folders with descriptions, or an
        array of such jobs.

        `command` is the command of `superclip` and its options.

        The folder of the script `file` contains the job's output and the copy of --setup.
        """
        own = {"exclusive": "", "mem": "0"}
        if self.cpus_per_node:
            own = {"cpus-per-task": str(self.cpus_per_node)}
        if array:
            own["array"] = array
        lines = [
            *self._setup(file),
            "runs=(",
            *(f"    {shlex.quote(str(folder))}" for folder in runs),
            ")",
            'run="${runs[${SLURM_ARRAY_TASK_ID:-0}]}"',
            f'command=("${{superclip[@]}}" {shlex.join(command)} "$run")',
        ]
        text = (shipped_folder("slurm") / "train.sbatch").read_text()
        for mark, filling in (("options", self._directives(file, name, own)), ("command", lines)):
            _check_lines(filling)
            before, _, rest = text.partition(f"# <{mark}>\n")
            text = "\n".join([before.rstrip("\n"), *filling, rest.partition(f"# </{mark}>\n")[2]])
        return SlurmJob(file, text)

    def _directives(self, file: Path, name: str, own: Mapping[str, str]) -> list[str]:
        """Returns the lines with the sbatch options of a job: the common ones, its own, and the
        user's, which replace them."""
        folder = str(file.parent.absolute())
        number = "%A_%a" if "array" in own else "%j"
        options = {
            "job-name": name,
            "nodes": str(self.nodes),
            "time": TIME,
            "output": f"{folder.replace('%', '%%')}/slurm-{number}.out",
            "chdir": str(Path.cwd()),
        }
        # on clusters without --gpus-per-node
        if self.device == "cuda" and "gres" not in self.sbatch:
            gpu_type = f"{self.gpu_type}:" if self.gpu_type else ""
            options["gpus-per-node"] = f"{gpu_type}{self.gpus_per_node}"
        options |= {**own, **self.sbatch}
        if any(option.startswith("mem-per-") for option in options):
            options.pop("mem", None)  # which sbatch refuses beside it
        texts = [
            f"--{option}={value}" if value else f"--{option}" for option, value in options.items()
        ]
        return [f"#SBATCH {shlex.quote(text)}" for text in texts]

    def _setup(self, file: Path) -> list[str]:
        """Returns the lines that set up the job and find `superclip`; in a container, on its own
        PATH."""
        setup = shlex.quote(f"{file.parent}/{SETUP}")
        failed = f'{{ echo "$0: {SETUP} has failed" >&2 && exit 1; }}'
        return [
            *([f"source {setup} || {failed}"] if self.setup else []),
            f"superclip=({shlex.quote(sys.executable)} -m openclip_superclip)",
            '[ -z "${SUPERCLIP_CONTAINER:-}" ] || superclip=(superclip)',
        ]


def processes_here(placement: Placement, device: str) -> int:
    """Returns the number of training processes here: one per GPU, or one on CPUs; InputError
    without a GPU."""
    if device == "cpu":
        return 1
    import torch

    gpus = placement.gpus or torch.cuda.device_count()
    if not gpus:
        raise InputError("no GPU was found here; expected one, or --device cpu")
    return gpus
