"""A lock that one process on any machine holds, with its owner in the file."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..environment import current_time
from ..errors import InputError
from ..files import (
    is_running,
    json_or_empty,
    json_text,
    make_folder,
    take_lock,
    write_json,
)
from .slurm import Placement, has_job


@contextlib.contextmanager
def lock(path: Path, placement: Placement) -> Iterator[None]:
    """Holds the lock; raises InputError, naming the owner, if another one is alive.

    The file is created with O_EXCL, so that one of several processes gets it on every file system.
    A second file is locked with flock, which the kernel releases when the process ends; without
    flock, the owner's number is looked up. squeue shows whether an owner on another machine is
    alive.
    """
    make_folder(path.parent)
    owner = {
        "job": placement.job,
        "restarts": placement.restarts,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": current_time(),
    }
    with open(f"{path}.flock", "a") as held:
        is_free = _take_flock(held, path)
        is_ours = is_free is not False and (
            _created(path, owner) or _taken_over(path, owner, has_flock=bool(is_free))
        )
        if not is_ours:
            raise _refusal(path)
        try:
            yield
        finally:
            if json_or_empty(path) == owner:
                path.unlink(missing_ok=True)


def _take_flock(file: BinaryIO, path: Path) -> bool | None:
    """Returns `take_lock(file)`, after up to ten seconds if the owner on this machine was killed:
    a process that it has forked may hold the lock until it ends."""
    deadline = time.monotonic() + 10
    while (is_free := take_lock(file)) is False and time.monotonic() < deadline:
        if not killed_owner(path):
            break
        time.sleep(0.1)
    return is_free


def owner_of(path: Path) -> dict:
    """Returns the owner in a lock's file; {} if the file is missing or damaged."""
    owner = json_or_empty(path)
    is_owner = owner.keys() >= {"job", "restarts", "host", "pid", "since"}
    are_numbers = all(isinstance(owner.get(name), int) for name in ("restarts", "pid"))
    is_job = isinstance(owner.get("job"), str | None)
    return owner if is_owner and are_numbers and is_job else {}


def killed_owner(path: Path) -> dict:
    """Returns the owner in a lock's file if it is a process of this machine that has ended, else
    {}."""
    owner = owner_of(path)
    is_killed = owner.get("host") == socket.gethostname() and not is_running(owner.get("pid"))
    return owner if is_killed else {}


def _created(path: Path, owner: dict) -> bool:
    """Returns whether this process has created the file, which did not exist, and nobody has
    taken it since."""
    try:
        with open(path, "x") as file:
            file.write(json_text(owner))
    except FileExistsError:
        return False
    return json_or_empty(path) == owner


def _taken_over(path: Path, owner: dict, *, has_flock: bool) -> bool:
    """Returns whether this process, and no other one, has replaced a dead owner."""
    other = owner_of(path)
    if not other:  # it is being written, or was damaged
        time.sleep(1)
        other = owner_of(path)
    if not path.exists():  # it was released
        return _created(path, owner)
    if _is_alive(other, owner, has_flock=has_flock):
        return False
    claim = Path(f"{path}.claim")
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        return False
    try:
        if owner_of(path) != other:
            return False
        write_json(path, owner)
        return True
    finally:
        claim.unlink()


def _is_alive(other: dict, owner: dict, *, has_flock: bool) -> bool:
    """Returns whether the lock's other owner may be alive, although no process here holds the
    lock."""
    if not other:
        return False
    same_job = other["job"] is not None and other["job"] == owner["job"]
    # SLURM ended that start before this one
    if same_job and other["restarts"] < owner["restarts"]:
        return False
    if other["host"] == owner["host"]:
        return not has_flock and is_running(other["pid"])
    return other["job"] is None or same_job or has_job(other["job"])


def _refusal(path: Path) -> InputError:
    owner = owner_of(path)
    who = "a new process"
    if owner:
        job = f"job {owner['job']}, " if owner["job"] else ""
        who = f"{job}process {owner['pid']} on {owner['host']} since {owner['since']}"
    return InputError(
        f"{path.parent} belongs to another run: {who}; wait for it, end it, or give "
        f"--out another folder; if it has ended, remove {path}*"
    )
