"""Whether a node or a run was lost without an error: closed connections, processes, heartbeats."""

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from .lock import killed_owner
from .recovery import CONNECTION, LOST, Failure, failures, first_failure

PATIENCE = 20  # seconds for which the node that closed a connection may report why
HEARTBEAT = 10  # seconds between two heartbeats of a run
# seconds without a heartbeat after which a run is lost: network file systems can lag by a minute
STALE = 120


def cause(
    logs: Path,
    here: Sequence[Failure],
    nodes: Sequence[str],
    patience: float = PATIENCE,
    *,
    is_stopped: bool = False,
) -> Failure | None:
    """Returns the failure that caused the others, None if there is none; waits up to `patience`
    seconds for other nodes to report it.

    If only connections were closed, or a signal has stopped this node, the nodes that have
    reported neither a failure nor a signal are lost. `here` are this node's failures, which it may
    not have been able to write; `nodes` are the names of all nodes.
    """
    deadline = time.monotonic() + (patience if len(nodes) > 1 else 0)
    while True:
        known = [*failures(logs), *here]
        failure = first_failure(known)
        silent = sorted({*nodes} - {failure.host for failure in known})
        is_known = failure is not None and failure.kind != CONNECTION
        if is_known or (is_stopped and not silent) or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    if silent and not is_known and (failure or is_stopped):
        message = f"lost contact with {', '.join(silent)}"
        return Failure("", message, kind=LOST, host=silent[0])
    return failure


def why_gone(run: Path) -> str | None:
    """Returns why the process that trains into a folder is gone, None if it may be alive."""
    if owner := killed_owner(run / "lock"):
        return f"process {owner.get('pid')} on {owner['host']} is gone"
    return "no heartbeat" if _age(run / "state.json") > STALE else None


def _age(file: Path) -> float:
    """Returns the seconds since a file was written, by the clock of its file system, which may
    differ from this machine's."""
    try:
        with tempfile.TemporaryFile(dir=file.parent) as new:
            new.write(b"now")
            new.flush()
            return os.fstat(new.fileno()).st_mtime - file.stat().st_mtime
    except OSError:  # a folder of another user, or a full disk
        return time.time() - file.stat().st_mtime
