"""How a run continues after a failure: by one rule, a pure function."""

import contextlib
import math
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from ..files import read_json, write_json
from .slurm import this_host

MAX_STARTS = 3  # in a row without a new slice, after which a run has failed
PREEMPTED_BY = "stopped by SIGTERM"  # the error of a preempted start
PREEMPTIONS = 10  # that count as one start


class NeedsUser(Exception):
    """A non-finite loss or too much unreadable data, which another start would meet again."""


@dataclass(frozen=True)
class Failure:
    """How a rank, or `superclip run` on a node, has failed: LOGS/*.error.json."""

    who: str
    message: str  # one line
    traceback: str = ""
    is_users: bool = False  # the user must fix it
    host: str = field(default_factory=this_host)  # SLURM's name
    timestamp: float = field(default_factory=time.time)

    @staticmethod
    def of(error: Exception, who: str = "superclip run", traceback: str = "") -> "Failure":
        """Returns the failure that an exception on this machine describes, now; an error of the
        user has no traceback."""
        if isinstance(error, InputError | NeedsUser):
            return Failure(who, str(error), is_users=True)
        return Failure(who, f"{type(error).__name__}: {error}", traceback)

    @property
    def text(self) -> str:
        """What happened, to which rank and where."""
        return f"{self.who} on {self.host}: {self.message}"

    def describe(self, logs: Path) -> str:
        """Returns what to print, given the folder of the ranks' output: the traceback first."""
        return (
            f"superclip run: {self.who} on {self.host} failed first:\n"
            f"{self.traceback.rstrip() or self.message}\n"
            f"superclip run: the output and the errors of every rank are in {logs}"
        )

    def write(self, path: Path) -> None:
        write_json(path, vars(self))

    @staticmethod
    def read(path: Path) -> "Failure":
        return Failure(**read_json(path))


def earliest_failure(
    logs: Path, here: Iterable[Failure] = (), before: float = math.inf
) -> Failure | None:
    """Returns the earliest failure of a start before a time, None without one; `here` are those
    of this node, which a full disk may have kept it from writing."""
    known = [*map(Failure.read, new_files(logs, "*.error.json")), *here]
    earlier = [failure for failure in known if failure.timestamp < before]
    return min(earlier, key=lambda failure: failure.timestamp, default=None)


def new_files(logs: Path, pattern: str) -> list[Path]:
    """Returns the files of a folder that match a pattern, also those that other nodes have just
    written."""
    # NFS, which caches the list of a folder's files for a minute, then looks for new ones
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=logs):
        pass
    return list(logs.glob(pattern))


@dataclass(frozen=True)
class Decision:
    """How a run continues."""

    again: bool = False
    without: str = ""  # the node that SLURM excludes if there are others
    why: str = ""  # why the run ends, added to the failure's text


def decide(failure: Failure, attempts: Sequence[Mapping], progress: int) -> Decision:
    """Returns how a run continues after a failure: it starts again, the second time elsewhere,
    until three starts in a row have saved nothing.

    Args:
        attempts: all starts of the run, as run.json records them; the last one has failed.
        progress: the number of saved slices.
    """
    if failure.is_users:
        return Decision()
    starts = starts_without_slice(attempts, progress)
    if starts >= MAX_STARTS:
        return Decision(why=f"; {starts} starts in a row ended before a slice was trained")
    return Decision(again=True, without=failure.host if starts > 1 else "")


def starts_without_slice(attempts: Sequence[Mapping], progress: int) -> int:
    """Returns how many starts in a row, including the last one, have not saved a slice.

    Earlier starts count if the run was started again after them, if they were killed, or if SLURM
    has requeued their job since; preempted ones count a tenth.
    """
    number = 0
    preempted = 0
    last = attempts[-1] if attempts else {}
    for attempt in reversed(attempts):
        same_job = last.get("job") is not None and attempt.get("job") == last["job"]
        requeued = same_job and attempt.get("restarts") != last.get("restarts")
        counts = attempt is last or requeued or attempt.get("again", same_job)
        if attempt.get("epoch_before") != progress or not counts:
            break
        if attempt is not last and attempt.get("error") == PREEMPTED_BY:
            preempted += 1
        else:
            number += 1
    return number + preempted // PREEMPTIONS
