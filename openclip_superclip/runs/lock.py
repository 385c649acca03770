"""A lock that one process on any machine holds, with its owner in the file."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from ..environment import current_time
from ..errors import InputError
from ..files import is_running, json_or_empty, json_text, make_folder, write_json
from .slurm import Placement, has_job

held = set()  # the locks of this process


@contextlib.contextmanager
def lock(path: Path, placement: Placement) -> Iterator[None]:
    """Holds the lock; raises InputError, naming the owner, if another one may be alive.

    The file is created with O_EXCL, so that one of several processes gets it on every file system.
    """
    make_folder(path.parent)
    owner = {
        "job": placement.job,
        "restarts": placement.restarts,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": current_time(),
    }
    if path.resolve() in held or not (_created(path, owner) or _taken_over(path, owner)):
        raise _refusal(path)
    held.add(path.resolve())
    try:
        yield
    finally:
        held.discard(path.resolve())
        if json_or_empty(path) == owner:
            path.unlink(missing_ok=True)


def owner_of(path: Path) -> dict:
    """Returns the owner in a lock's file; {} if the file is missing or damaged."""
    owner = json_or_empty(path)
    return owner if owner.keys() >= {"job", "restarts", "host", "pid", "since"} else {}


def killed_owner(path: Path) -> dict:
    """Returns the owner in a lock's file if it is a process of this machine that has ended, else
    {}."""
    owner = owner_of(path)
    is_killed = owner.get("host") == socket.gethostname() and not is_running(owner["pid"])
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


def _taken_over(path: Path, owner: dict) -> bool:
    """Returns whether this process, and no other one, has replaced a dead owner."""
    other = owner_of(path)
    if not other:  # it is being written, or was damaged
        time.sleep(1)
        other = owner_of(path)
    if not path.exists():  # it was released
        return _created(path, owner)
    if other and _may_be_alive(other, owner):
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


def _may_be_alive(other: dict, owner: dict) -> bool:
    """Returns whether the lock's other owner may be alive."""
    same_job = other["job"] is not None and other["job"] == owner["job"]
    # SLURM ended that start before this one
    if same_job and other["restarts"] < owner["restarts"]:
        return False
    if other["host"] == owner["host"]:
        # another container may have had a process of this number
        return other["pid"] != owner["pid"] and is_running(other["pid"])
    return other["job"] is None or same_job or has_job(other["job"])


def _refusal(path: Path) -> InputError:
    owner = owner_of(path)
    who = "a new process"
    if owner:
        job = f"job {owner['job']}, " if owner["job"] else ""
        who = f"{job}process {owner['pid']} on {owner['host']} since {owner['since']}"
    return InputError(
        f"{path.parent} belongs to another run: {who}; wait for it, end it, or give "
        f"--out another folder; if it has ended, remove {path}"
    )
