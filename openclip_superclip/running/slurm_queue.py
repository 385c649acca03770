"""The jobs that SLURM has in its queue for this user."""

import subprocess
from typing import NamedTuple

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
