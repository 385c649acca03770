"""The progress of a run while it trains: steps, speed, expected end, stalls, and OpenCLIP's log."""

import re
import time
from collections import Counter, deque
from datetime import datetime, timedelta
from pathlib import Path

from ..plans.run import Run

FIRST_STEP = 30  # minutes that the first step may take, at least
STACKS = 5  # seconds in which ranks without progress write their stacks
SPEED_WINDOW = 600  # seconds over which the throughput is measured, including checkpoints
STEPS = "steps"  # the file in which rank 0 writes the number of completed steps
STEP = re.compile(r"Train Epoch: (\d+) \[\s*(\d+)/(\d+) ")
LOSS = re.compile(r"(\w*[Ll]oss): ([\d.e+-]+|nan|-?inf) \(")
SPEED = re.compile(r"([\d.e+-]+)/s, ")
WAITING = re.compile(r"Data \(t\): ([\d.]+)")  # seconds
END_OF_STEP = re.compile(r"\bLoss: \S+ \([^)]*\)\s*$")  # OpenCLIP writes the total last


class Progress:
    """Follows the number of steps that rank 0 writes."""

    def __init__(self, run: Run, logs: Path):
        self.run = run
        self.steps_file = logs / STEPS
        self.seen = deque()  # times, and the completed steps then
        self.last_step = time.monotonic()  # when the last one was seen, or this start began

    def look(self) -> None:
        """Reads the number of steps."""
        try:
            steps = int(self.steps_file.read_text())
        except (OSError, ValueError):  # before the first step
            return
        now = time.monotonic()
        if self.seen and steps <= self.seen[-1][1]:
            return
        self.last_step = now
        self.seen.append((now, steps))
        while now - self.seen[0][0] > SPEED_WINDOW and len(self.seen) > 2:
            self.seen.popleft()

    def has_stalled(self, minutes: float) -> bool:
        """Returns whether there was no step for so many minutes, 0 for never; the first one may
        take half an hour."""
        allowed = minutes if self.seen else max(minutes, FIRST_STEP)
        return minutes > 0 and time.monotonic() - self.last_step > 60 * allowed + STACKS

    def values(self, epoch: int) -> dict:
        """Returns the progress for state.json, after `epoch` saved slices."""
        step = max(self.seen[-1][1] if self.seen else 0, epoch * self.run.slice_steps)
        speed = end = None
        if len(self.seen) > 1:
            (began, before), (ended, after) = self.seen[0], self.seen[-1]
            speed = (after - before) / (ended - began)
            end = datetime.now().astimezone() + timedelta(seconds=(self.run.steps - step) / speed)
        return {
            "slices": self.run.num_slices,
            "step": step,
            "steps": self.run.steps,
            "samples_per_second": round(speed * self.run.global_batch_size, 3) if speed else None,
            "expected_end": end.isoformat(timespec="seconds") if end else None,
        }


class AddedLines:
    """Reads the lines that are added to files, each once."""

    def __init__(self):
        self.offsets = Counter()

    def read(self, file: Path) -> bytes:
        """Returns the complete lines that were added since the last call; b"" if there is no
        file."""
        # do not open unchanged files: a run may have a thousand
        if not file.exists() or file.stat().st_size <= self.offsets[file]:
            return b""
        with open(file, "rb") as opened:
            opened.seek(self.offsets[file])
            added = opened.read()
        lines = added[: added.rfind(b"\n") + 1]
        self.offsets[file] += len(lines)
        return lines


def read_log(log: Path) -> list[dict]:
    """Returns a dict per logged step: samples seen, samples per epoch, losses, data time, samples
    per second.

    If a resumed run has repeated steps, only the last repetition is returned. Truncated lines are
    ignored.
    """
    points = []
    for line in log.read_text(errors="replace").splitlines():
        step = STEP.search(line)
        if not (step and END_OF_STEP.search(line)):
            continue
        epoch, seen, of_epoch = map(int, step.groups())
        samples = epoch * of_epoch + seen
        while points and points[-1]["samples"] >= samples:
            points.pop()
        speed = SPEED.search(line)
        waiting = WAITING.search(line)
        losses = {name.lower(): float(value) for name, value in LOSS.findall(line)}
        points.append(
            {
                "samples": samples,
                **losses,
                "epoch_samples": of_epoch,
                "data_seconds": float(waiting[1]) if waiting else None,
                "samples_per_second": float(speed[1]) if speed else None,
            }
        )
    return points
