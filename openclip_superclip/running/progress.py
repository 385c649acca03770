"""How far a run is, how fast, and when it will end."""

import time
from collections import deque
from datetime import datetime, timedelta
from pathlib import Path

from ..planning.plan import Plan
from .step_watch import STEPS, read_steps

FIRST_STEP = 30  # minutes until the first, at least
WINDOW = 600  # seconds over which the speed is taken: checkpoints are in it


class Progress:
    """Follows the steps that rank 0 tells of."""

    def __init__(self, plan: Plan, logs: Path):
        self.plan, self.steps_file = plan, logs / STEPS
        self.seen = deque()  # times, and the whole steps then
        self.last_step = time.monotonic()  # when the last one was seen, or this start of the run began

    def look(self) -> None:
        """Reads how many steps there are by now."""
        steps, now = read_steps(self.steps_file), time.monotonic()
        if steps is None or (self.seen and steps <= self.seen[-1][1]):
            return
        self.last_step = now
        self.seen.append((now, steps))
        while now - self.seen[0][0] > WINDOW and len(self.seen) > 2:
            self.seen.popleft()

    def stands_still(self, minutes: float) -> bool:
        """Returns whether there was no step for so long; 0 for never. What comes before the first has half an hour."""
        allowed = minutes if self.seen else max(minutes, FIRST_STEP)
        return minutes > 0 and time.monotonic() - self.last_step > 60 * allowed

    def values(self, epoch: int) -> dict:
        """Returns what state.json tells of it, `epoch` slices being saved."""
        step = max(self.seen[-1][1] if self.seen else 0, epoch * self.plan.slice_steps)
        speed = self._steps_per_second()
        left = self.plan.steps - step
        end = datetime.now().astimezone() + timedelta(seconds=left / speed) if speed else None
        return {
            "slices": self.plan.num_slices,
            "step": step,
            "steps": self.plan.steps,
            "samples_per_second": round(speed * self.plan.global_batch_size, 3) if speed else None,
            "expected_end": end.isoformat(timespec="seconds") if end else None,
        }

    def _steps_per_second(self) -> float | None:
        if len(self.seen) < 2:
            return None
        (began, before), (ended, after) = self.seen[0], self.seen[-1]
        return (after - before) / (ended - began)
