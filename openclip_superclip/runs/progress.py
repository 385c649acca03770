"""The progress of a run while it trains: steps, speed, expected end, and OpenCLIP's log."""

import re
import time
from collections import Counter, deque
from datetime import datetime, timedelta
from pathlib import Path

from ..plans.run import Run

SPEED_WINDOW = 600  # seconds over which the throughput is measured, including checkpoints
STEPS = "steps"  # the file in which rank 0 writes the number of completed steps
STEP = re.compile(
    r"^(\S+) \|.* Train Epoch: (\d+) \[\s*(\d+)/(\d+) .*Data \(t\): ([\d.]+) .*, ([\d.e+-]+)/s, "
    r".*\bLoss: \S+ \([^)]*\)\s*$"  # the total, which OpenCLIP writes last
)
LOSS = re.compile(r"(\w*[Ll]oss): ([\d.e+-]+|nan|-?inf) \(")


class Progress:
    """Follows the number of steps that rank 0 writes."""

    def __init__(self, run: Run, logs: Path):
        self.run = run
        self.steps_file = logs / STEPS
        self.seen = deque()  # times, and the completed steps then

    def look(self) -> None:
        """Reads the number of steps."""
        try:
            steps = int(self.steps_file.read_text())
        except (OSError, ValueError):  # before the first step
            return
        now = time.monotonic()
        if self.seen and steps <= self.seen[-1][1]:
            return
        self.seen.append((now, steps))
        while now - self.seen[0][0] > SPEED_WINDOW and len(self.seen) > 2:
            self.seen.popleft()

    def values(self, epoch: int) -> dict:
        """Returns the progress for state.json, after `epoch` saved slices."""
        step = max(self.seen[-1][1] if self.seen else 0, epoch * self.run.slice_steps)
        speed = end = None
        if len(self.seen) > 1:
            (began, before), (ended, after) = self.seen[0], self.seen[-1]
            seconds = (ended - began) / (after - before)  # of a step
            speed = round(self.run.global_batch_size / seconds, 3)
            left = timedelta(seconds=(self.run.steps - step) * seconds)
            end = (datetime.now().astimezone() + left).isoformat(timespec="seconds")
        return {
            "slices": self.run.num_slices,
            "step": step,
            "steps": self.run.steps,
            "samples_per_second": speed,
            "expected_end": end,
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
    """Returns a dict per logged step: time, samples seen, losses, data time, samples per second."""
    points = []
    for line in log.read_text(errors="replace").splitlines():
        step = STEP.search(line)
        if not step:
            continue
        epoch, seen, of_epoch = map(int, step.groups()[1:4])
        data_seconds, speed = map(float, step.groups()[4:])
        losses = {name.lower(): float(value) for name, value in LOSS.findall(line)}
        points.append(
            {
                "time": datetime.strptime(step[1], "%Y-%m-%d,%H:%M:%S"),
                "samples": epoch * of_epoch + seen,
                **losses,
                "data_seconds": data_seconds,
                "samples_per_second": speed,
            }
        )
    return points
