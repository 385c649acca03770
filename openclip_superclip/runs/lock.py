"""A lock that one process on any machine holds, with its owner in the file."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from ..errors import InputError
from ..files import json_text, make_folder, read_json, write_json
from .slurm import Placement, has_job


def is_running(pid: int | None) -> bool:
    """Returns whether this machine has a process of this number."""
    try:
        os.kill(pid or 0, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return pid is not None


@contextmanager
def lock(
    path: Path, placement: Placement, folder: Path | None = None, flag: str = "--out"
) -> Iterator[None]:
    """Holds the lock; raises InputError, naming the owner, if another one is alive.

    The file is created with O_EXCL, so that one of several processes gets it on every file system.
    A second file is locked with flock, which the kernel releases when the process ends; without
    flock, the owner's number is looked up. squeue shows whether an owner on another machine is
    alive. `folder` is what is locked, by default the file's folder, and `flag` names it.
    """
    make_folder(path.parent, flag)
    owner = {
        "job": placement.job,
        "restarts": placement.restarts,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    with open(f"{path}.flock", "a") as held:
        has_flock = True
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refusal(path, folder, flag) from None
        except OSError:  # not on this file system
            has_flock = False
        if not _taken(path, owner, placement, has_flock):
            raise _refusal(path, folder, flag)
        try:
            yield
        finally:
            if read_json(path, default={}) == owner:
                path.unlink(missing_ok=True)


def _taken(path: Path, owner: dict, placement: Placement, has_flock: bool) -> bool:
    """Returns whether the lock is this process's now: it was free, or its owner is dead."""
    while not _created(path, owner):
        other = _owner(path)
        if path.exists():  # else it was released
            return not _is_alive(other, placement, has_flock) and _taken_over(path, other, owner)
    return True


def _created(path: Path, owner: dict) -> bool:
    """Returns whether this process has created the file, which did not exist, and nobody has
    taken it since."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    with open(file, "w") as opened:
        opened.write(json_text(owner))
    return read_json(path, default={}) == owner


def _owner(path: Path) -> dict:
    owner = read_json(path, default={})
    if not owner:  # it is being written, or was damaged
        time.sleep(1)
    return owner or read_json(path, default={})


def _taken_over(path: Path, dead: dict, owner: dict) -> bool:
    """Returns whether this process, and no other one, has replaced a dead owner."""
    claim = Path(f"{path}.claim")
    try:
        os.close(os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    except FileExistsError:
        return False
    try:
        if read_json(path, default={}) != dead:
            return False
        write_json(path, owner)
        return True
    finally:
        claim.unlink()


def _is_alive(owner: dict, placement: Placement, has_flock: bool) -> bool:
    """Returns whether the lock's owner may be alive, although no process here holds the lock."""
    if not owner:
        return False
    same_job = owner["job"] is not None and owner["job"] == placement.job
    # SLURM ended that start before this one
    if same_job and owner["restarts"] < placement.restarts:
        return False
    if owner["host"] == socket.gethostname():
        return not has_flock and is_running(owner["pid"])
    if owner["job"] is None or same_job:
        return True
    return has_job(owner["job"])


def _refusal(path: Path, folder: Path | None, flag: str) -> InputError:
    owner = read_json(path, default={})
    who = "a new process"
    if owner:
        job = f"job {owner['job']}, " if owner["job"] else ""
        who = f"{job}process {owner['pid']} on {owner['host']} since {owner['since']}"
    return InputError(
        f"{folder or path.parent} belongs to another run: {who}; wait for it, end it, or give "
        f"{flag} another folder; if it has ended, remove {path}*"
    )
