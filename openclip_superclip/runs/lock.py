"""The lock of a run's folder: one process at a time trains into it."""

import functools
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import InputError
from ..files import write_json
from .machines import Placement


class LockLost(InputError):
    """The folder is another process's now, and so is what it tells."""


@contextmanager
def lock(
    path: Path, placement: Placement, folder: Path | None = None, flag: str = "--out"
) -> Iterator[Callable[[], None]]:
    """Holds the lock, whose file names its owner; raises InputError, naming the owner, where another one lives.

    A process on this machine that lives holds a second file locked, and the kernel releases it with the process. Not
    every network file system tells other machines of that, so SLURM is asked for the owner's job.

    Yields a function that raises LockLost where the lock is lost all the same, to another machine in that instant.

    Args:
        path: of the lock's file.
        folder, flag: what is locked, the file's folder where it is None, and what the user names it by.
    """
    refusal = functools.partial(_refusal, path, folder or path.parent, flag)
    held = FileLock(f"{path}.flock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise InputError(refusal(_owner(path), "which runs")) from None
    except (OSError, NotImplementedError):  # a file system without locks
        pass
    try:
        _check_owner(_owner(path), placement, held.is_locked, refusal)
        owner = {
            "job": placement.job,
            "restarts": placement.restarts,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        write_json(path, owner)

        def check():
            if _owner(path) != owner:
                raise LockLost(refusal(_owner(path), "which started in the same second"))

        try:
            yield check
        finally:
            if _owner(path) == owner:
                path.unlink(missing_ok=True)
    finally:
        held.release()


def _check_owner(owner: dict | None, placement: Placement, locked: bool, refusal: Callable[..., str]) -> None:
    """Raises InputError where the owner that the file names may live, though nothing here holds it locked."""
    if owner is None:
        return
    if owner["host"] == socket.gethostname():
        if not locked and Path(f"/proc/{owner['pid']}").exists():
            raise InputError(refusal(owner, "which runs"))
        return
    if owner["job"] is None:
        raise InputError(refusal(owner, "another machine, where nothing can be asked"))
    if owner["job"] == placement.job:
        if owner["restarts"] < placement.restarts:  # SLURM ended that start before it made this one
            return
        raise InputError(refusal(owner, "another step of this job"))
    if _job_lives(owner["job"]) is not False:
        raise InputError(refusal(owner, "which SLURM still knows, or cannot be asked about"))


def _refusal(path: Path, folder: Path, flag: str, owner: dict | None, state: str) -> str:
    if owner is None:
        who = "a process that has just started"
    else:
        job = f"job {owner['job']}, " if owner["job"] else ""
        who = f"{job}process {owner['pid']} on {owner['host']} since {owner['since']}"
    return (
        f"{folder} belongs to another run: {who} ({state}); wait for it, end it, or give {flag} another folder; "
        f"if it is surely gone, remove {path}*"
    )


def _job_lives(job: str) -> bool | None:
    """Returns whether SLURM has the job in its queue, None where it cannot be asked."""
    try:
        asked = subprocess.run(["squeue", "--noheader", "--format=%T", "--jobs", job], capture_output=True, text=True)
    except OSError:
        return None
    if asked.returncode == 0:
        return bool(asked.stdout.strip())
    return False if "Invalid job id" in asked.stderr else None


def _owner(path: Path) -> dict | None:
    """Returns what the lock's file tells of its owner, None where it has none."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
