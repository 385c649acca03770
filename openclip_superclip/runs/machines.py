"""Which of a run's nodes this process is on, as SLURM tells it."""

import errno
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
    job: str | None = None  # SLURM's number, another one for each task of an array
    restarts: int = 0  # how often SLURM has requeued the job
    step: str | None = None
    master_addr: str = "127.0.0.1"
    master_port: int = 0
    gpus: int | None = None  # of this node, where SLURM tells

    def name_of_start(self, num_earlier: int) -> str:
        """Returns the name of this start of a run, the same on all of its nodes, after so many earlier ones.

        One node counts them: a shell on it may start the run again within the same step.
        """
        return f"local-{num_earlier}" if self.num_nodes == 1 else f"{self.job}.{self.step}-{self.restarts}"

    def port_is_taken(self) -> bool:
        """Returns whether something on this machine, the run's first, listens where its ranks are to meet."""
        if self.num_nodes == 1:  # whose launcher finds a port itself
            return False
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch does: an earlier run may have ended
            try:
                free.bind(("", self.master_port))
            except OSError as error:
                return error.errno == errno.EADDRINUSE
        return False

    def num_processes(self, device: str) -> int:
        """Returns how many processes train on this node: one a GPU, and one on CPUs; InputError without a GPU."""
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
    """Returns where this process is; raises InputError where srun was not told to start one process a node."""
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
                "srun --ntasks-per-node=1, as slurm/training_job.sh does"
            )
        return Placement(job=job, restarts=restarts, gpus=gpus)
    num_nodes, num_tasks = int(environment["SLURM_STEP_NUM_NODES"]), int(environment["SLURM_STEP_NUM_TASKS"])
    if num_tasks != num_nodes:
        raise InputError(
            f"srun starts {num_tasks} processes on {num_nodes} nodes; expected one a node (--ntasks-per-node=1), "
            "which starts a process for each GPU itself"
        )
    if num_nodes > 1 and "MASTER_ADDR" not in environment:
        raise InputError("MASTER_ADDR is not set: expected the first node's name, as slurm/training_job.sh exports it")
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


def ask_to_exclude(host: str, environment: Mapping[str, str] = os.environ) -> None:
    """Asks the job script, if it is there, to have SLURM start the job again without this host."""
    if host and "SUPERCLIP_EXCLUDE" in environment:
        with open(environment["SUPERCLIP_EXCLUDE"], "a") as file:
            file.write(f"{host}\n")


def hosts(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Returns the names of the run's nodes; SLURM's own short form where a container lacks its commands."""
    nodes = environment.get("SLURM_STEP_NODELIST")
    if nodes is None:
        return [socket.gethostname()]
    try:
        listed = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return [nodes]
    return listed.stdout.split()


FIELDS = ("%A", "%i", "%T", "%r")


class QueuedJob(NamedTuple):
    """A job, or a task of an array, that waits or runs."""

    number: str  # SLURM_JOB_ID, another one for each task of an array
    task: str  # ARRAY_TASK, as sbatch's number and the task give it; the number where there is no array
    state: str  # PENDING, RUNNING, …
    reason: str  # why it waits


def my_jobs() -> dict[str, QueuedJob] | None:
    """Returns this user's jobs by number, and tasks of arrays by ARRAY_TASK too; None where SLURM cannot be asked."""
    asked = ["squeue", "--me", "--array", "--noheader", f"--format={'|'.join(FIELDS)}"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True)
    except OSError:
        return None
    if done.returncode:
        return None
    jobs = [QueuedJob(*line.strip().split("|", len(FIELDS) - 1)) for line in done.stdout.splitlines() if line.strip()]
    return {job.number: job for job in jobs} | {job.task: job for job in jobs}
