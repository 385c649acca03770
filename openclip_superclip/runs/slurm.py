"""SLURM: the node of this process, and the queue."""

import os
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import InputError

FIRST_SPECIAL_STEP = 0xFFFFFFF0  # SLURM's numbers of the batch script's and salloc's own steps


@dataclass(frozen=True)
class Placement:
    """One machine outside SLURM, or one node of a step of a job."""

    num_nodes: int = 1
    node: int = 0
    job: str | None = None  # SLURM's number, different for each task of an array
    restarts: int = 0  # how often SLURM has requeued the job
    step: str | None = None
    master_addr: str = "127.0.0.1"
    master_port: int = 0
    gpus: int | None = None  # of this node, if set by SLURM

    def name_of_start(self, num_earlier: int) -> str:
        """Returns the name of this start of a run, equal on all nodes, given the number of earlier starts.

        Earlier starts only count on a single node, because a shell there can start the run again within the same step.
        """
        return f"local-{num_earlier}" if self.num_nodes == 1 else f"{self.job}.{self.step}-{self.restarts}"

    def num_processes(self, device: str) -> int:
        """Returns the number of training processes here: one per GPU, or one on CPUs; InputError without a GPU."""
        if device == "cpu":
            return 1
        gpus = self.gpus
        if gpus is None:
            import torch

            gpus = torch.cuda.device_count()
        if gpus == 0:
            raise InputError("no GPU was found here; expected one, or --device cpu with --nproc N")
        return gpus


def find_placement(environment: Mapping[str, str] = os.environ) -> Placement:
    """Returns the node of this process; InputError if srun does not start one process per node."""
    job = environment.get("SLURM_JOB_ID")
    if job is None:
        return Placement()
    restarts = int(environment.get("SLURM_RESTART_COUNT", 0))
    gpus = int(environment["SLURM_GPUS_ON_NODE"]) if "SLURM_GPUS_ON_NODE" in environment else None
    step = environment.get("SLURM_STEP_ID")
    if step is None or int(step) >= FIRST_SPECIAL_STEP:
        num_nodes = int(environment.get("SLURM_JOB_NUM_NODES", 1))
        if num_nodes > 1:
            raise InputError(
                f"job {job} has {num_nodes} nodes, and this process would use one of them: start it with "
                "srun --ntasks-per-node=1, as slurm/train.sbatch does"
            )
        return Placement(job=job, restarts=restarts, gpus=gpus)
    num_nodes, num_tasks = int(environment["SLURM_STEP_NUM_NODES"]), int(environment["SLURM_STEP_NUM_TASKS"])
    if num_tasks != num_nodes:
        raise InputError(
            f"srun starts {num_tasks} processes on {num_nodes} nodes; expected one per node (--ntasks-per-node=1), "
            "which starts a process for each GPU itself"
        )
    if num_nodes > 1 and "MASTER_ADDR" not in environment:
        raise InputError("MASTER_ADDR is not set: expected the first node's name, as slurm/train.sbatch exports it")
    return Placement(
        num_nodes=num_nodes,
        node=int(environment["SLURM_NODEID"]),
        job=job,
        restarts=restarts,
        step=step,
        master_addr=environment.get("MASTER_ADDR", "127.0.0.1"),
        master_port=int(environment.get("MASTER_PORT", 29500)),
        gpus=gpus,
    )


def ask_job(what: str, exclude: str = "", environment: Mapping[str, str] = os.environ) -> bool:
    """Sends "started", "restart" or "requeue" to slurm/train.sbatch, and returns whether it runs this process.

    SLURM should not start the job on the host `exclude` again.
    """
    has_script = "SUPERCLIP_NEXT" in environment
    if has_script:
        with open(environment["SUPERCLIP_NEXT"], "a") as file:
            file.write(f"{what}\n" + (f"exclude {exclude}\n" if exclude else ""))
    return has_script


def hosts(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Returns the names of the run's nodes; SLURM's compressed list if scontrol is missing, as in a container."""
    nodes = environment.get("SLURM_STEP_NODELIST")
    if nodes is None:
        return [socket.gethostname()]
    try:
        listed = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return [nodes]
    return listed.stdout.split()


class QueuedJob(NamedTuple):
    """A pending or running job, or task of an array."""

    number: str  # SLURM_JOB_ID, another one for each task of an array
    task: str  # ARRAY_TASK with sbatch's number; the number if there is no array
    state: str  # PENDING, RUNNING, …
    reason: str  # why it is pending


def my_jobs() -> dict[str, QueuedJob] | None:
    """Returns this user's jobs by number and by ARRAY_TASK; {} without squeue, and None if it does not answer."""
    command = ["squeue", "--me", "--array", "--noheader", "--format=%A|%i|%T|%r"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        return {}
    except (OSError, subprocess.CalledProcessError):
        return None
    jobs = [QueuedJob(*line.strip().split("|", 3)) for line in listed.splitlines() if line.strip()]
    return {job.number: job for job in jobs} | {job.task: job for job in jobs}


def has_job(job: str) -> bool:
    """Returns whether SLURM has a job, of any user, in its queue; also true if SLURM does not answer."""
    try:
        asked = subprocess.run(["squeue", "--noheader", "--format=%T", "--jobs", job], capture_output=True, text=True)
    except OSError:
        return True
    return bool(asked.stdout.strip()) if asked.returncode == 0 else "Invalid job id" not in asked.stderr


def this_host() -> str:
    """Returns the name of this machine in SLURM."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
