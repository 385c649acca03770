"""How a run stands: what its state.json says, and whether that still holds."""

import json
import socket
from datetime import datetime
from pathlib import Path

RUNNING, PREEMPTED, FINISHED, FAILED = "running", "preempted", "finished", "failed"
LOST = "lost"  # of a run that nobody trains any more, and that could not say so
PERIOD = 10  # seconds between two heartbeats of a run
STALE = 120  # seconds after which a run without one is lost: network file systems show what others write after a minute


def told_state(run: Path) -> dict:
    """Returns what state.json of a run's folder says, nothing where there is none.

    Where it says `running` and its process is gone, or its heartbeat has stopped, `state` is `lost` and `error` says
    since when.
    """
    state = read_object(run / "state.json")
    if state.get("state") != RUNNING:
        return state
    heartbeat = state.get("heartbeat") or state.get("since")
    owner = read_object(run / "lock")
    if owner.get("host") == socket.gethostname() and not Path(f"/proc/{owner.get('pid')}").exists():
        who = f"process {owner.get('pid')} on {owner['host']} is gone"
    elif seconds_since(heartbeat) > STALE:
        who = "there is no heartbeat"
    else:
        return state
    return {**state, "state": LOST, "error": f"{who}, and could not say why: its last word is of {heartbeat}"}


def seconds_since(time: str | None) -> float:
    """Returns the age of a time as state.json writes it, 0 where it is none."""
    try:
        return (datetime.now().astimezone() - datetime.fromisoformat(time)).total_seconds()
    except (TypeError, ValueError):
        return 0.0


def read_object(path: Path) -> dict:
    """Returns what a JSON file holds, nothing where it cannot be read or holds no object."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
