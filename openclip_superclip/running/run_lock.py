"""The lock of a run's folder: one process at a time trains into it."""

import fcntl
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from ..errors import InputError
from .placement import Placement


class LockLost(InputError):
    """The folder is another process's now, and so is what it tells."""


@contextmanager
def lock(path: Path, placement: Placement) -> Iterator[Callable[[], None]]:
    """Holds the lock, whose file names its owner; raises InputError, naming the owner, where another one lives.

    A process on this machine that lives holds the file locked, and the kernel releases it with the process. Not every
    network file system tells other machines of that, so SLURM is asked for the owner's job. The file stays.

    Yields a function that raises LockLost where the lock is lost all the same, to another machine in that instant.
    """
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            raise InputError(_refusal(path, _read(file), "which runs")) from None
        except OSError:  # a file system without locks
            locked = False
        _check_owner(path, _read(file), placement, locked)
        owner = {
            "job": placement.job,
            "restarts": placement.restarts,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        _write(file, owner)

        def check():
            if _read(file) != owner:
                raise LockLost(_refusal(path, _read(file), "which started in the same second"))

        try:
            yield check
        finally:
            if _read(file) == owner:
                _write(file, None)


def _check_owner(path: Path, owner: dict | None, placement: Placement, locked: bool) -> None:
    """Raises InputError where the owner that the file names may live, though nothing here holds it locked."""
    if owner is None:
        return
    if owner["host"] == socket.gethostname():
        if not locked and Path(f"/proc/{owner['pid']}").exists():
            raise InputError(_refusal(path, owner, "which runs"))
        return
    if owner["job"] is None:
        raise InputError(_refusal(path, owner, "another machine, where nothing can be asked"))
    if owner["job"] == placement.job:
        if owner["restarts"] < placement.restarts:  # SLURM ended that start before it made this one
            return
        raise InputError(_refusal(path, owner, "another step of this job"))
    if _job_lives(owner["job"]) is not False:
        raise InputError(_refusal(path, owner, "which SLURM still knows, or cannot be asked about"))


def _refusal(path: Path, owner: dict | None, state: str) -> str:
    if owner is None:
        who = "a process that has just started"
    else:
        job = f"job {owner['job']}, " if owner["job"] else ""
        who = f"{job}process {owner['pid']} on {owner['host']} since {owner['since']}"
    return (
        f"{path.parent} belongs to another run: {who} ({state}); wait for it, end it, or give --out another folder; "
        f"if it is surely gone, remove {path}"
    )


def _job_lives(job: str) -> bool | None:
    """Tells whether SLURM has the job in its queue, None where it cannot be asked."""
    try:
        asked = subprocess.run(["squeue", "--noheader", "--format=%T", "--jobs", job], capture_output=True, text=True)
    except OSError:
        return None
    if asked.returncode == 0:
        return bool(asked.stdout.strip())
    return False if "Invalid job id" in asked.stderr else None


def _read(file) -> dict | None:
    file.seek(0)
    text = file.read()
    try:
        return json.loads(text)
    except json.JSONDecodeError:  # empty, or its writer died
        return None


def _write(file, owner: dict | None) -> None:
    file.seek(0)
    file.truncate()
    if owner is not None:
        json.dump(owner, file)
    file.flush()
    os.fsync(file.fileno())
