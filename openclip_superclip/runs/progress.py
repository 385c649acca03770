"""What node 0 watches while a run trains: its steps, its log, and the data that its ranks could
not read."""

import contextlib
import functools
import json
import math
import re
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType

from ..data.tar_shards import expand
from ..errors import InputError, listed
from .run import Run

FIRST_STEP = 30  # minutes that the first step may take, at least
STACKS = 5  # seconds in which ranks without progress write their stacks
SPEED_WINDOW = 600  # seconds over which the throughput is measured, including checkpoints
NUM_NAMED = 3  # shards that a message lists
STEPS = "steps"  # the file in which rank 0 writes the number of completed steps
STEP = re.compile(r"Train Epoch: (\d+) \[\s*(\d+)/(\d+) ")
LOSS = re.compile(r"(\w*[Ll]oss): ([\d.e+-]+|nan|-?inf) \(")
SPEED = re.compile(r"([\d.e+-]+)/s, ")
WAITING = re.compile(r"Data \(t\): ([\d.]+)")  # seconds
END_OF_STEP = re.compile(r"\bLoss: \S+ \([^)]*\)\s*$")  # OpenCLIP writes the total last


class Progress:
    """Follows the number of steps that rank 0 writes."""

    def __init__(self, run: Run, logs: Path):
        self.run, self.steps_file = run, logs / STEPS
        self.seen = deque()  # times, and the completed steps then
        self.last_step = time.monotonic()  # when the last one was seen, or this start began

    def look(self) -> None:
        """Reads the number of steps."""
        try:
            steps, now = int(self.steps_file.read_text()), time.monotonic()
        except (OSError, ValueError):  # before the first step
            return
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
        with contextlib.suppress(FileNotFoundError):
            # do not open unchanged files: a run may have a thousand
            if file.stat().st_size > self.offsets[file]:
                with open(file, "rb") as opened:
                    opened.seek(self.offsets[file])
                    added = opened.read()
                lines = added[: added.rfind(b"\n") + 1]
                self.offsets[file] += len(lines)
                return lines
        return b""


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
        speed, waiting = SPEED.search(line), WAITING.search(line)
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


class UnreadableData:
    """Counts the shards and samples that the ranks of all starts of a run could not read.

    `ranks` is the folder with a folder for each start, and `start` is this one's name.
    """

    def __init__(self, run: Run, ranks: Path, start: str):
        self.run, self.ranks, self.start = run, ranks, start
        self.shards: dict[str, str] = {}  # of the whole run: why each cannot be read
        self.of_slice = defaultdict(set)  # the shards of this start, by slice
        self.samples = Counter()  # by start and epoch
        self.added = AddedLines()

    def look(self) -> dict[str, int]:
        """Returns the numbers for state.json."""
        for file in self.ranks.glob("*/unreadable_*.jsonl"):
            for line in map(json.loads, self.added.read(file).splitlines()):
                if "shard" in line:
                    self.shards[line["shard"]] = line["why"]
                    if file.parent.name == self.start:
                        self.of_slice[line["epoch"]].add(line["shard"])
                else:
                    self.samples[file.parent.name, line["epoch"]] += 1
        # a slice trained twice counts once
        of_epoch = {epoch: number for (_, epoch), number in self.samples.items()}
        return {"shards": len(self.shards), "samples": sum(of_epoch.values())}

    def check(self) -> None:
        """Raises InputError if a slice that this start trains has too many."""
        epochs = {*self.of_slice, *(epoch for start, epoch in self.samples if start == self.start)}
        for epoch in sorted(epochs):
            shards = {shard: self.shards[shard] for shard in sorted(self.of_slice[epoch])}
            num_samples = self.samples[self.start, epoch]
            if problem := too_much_unreadable(self.run, epoch, len(shards), num_samples, shards):
                raise InputError(problem)


def unreadable_of_slice(file: Path, epoch: int) -> tuple[int, int]:
    """Returns the numbers of shards and samples of a slice that a rank could not read, from its
    file."""
    lines = map(json.loads, file.read_bytes().splitlines()) if file.exists() else ()
    found = [line for line in lines if line["epoch"] == epoch]
    shards = [line["shard"] for line in found if "shard" in line]
    return len(set(shards)), len(found) - len(shards)


def too_much_unreadable(
    run: Run,
    epoch: int,
    num_shards: int,
    num_samples: int,
    shards: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Returns the error if more of a slice cannot be read than --unreadable-max allows, else "";
    `shards` are named."""
    limit = run.settings.unreadable_max
    if num_shards and num_shards > limit * num_shards_of_slice(run):
        return _too_much(
            f"{num_shards:,} of the {num_shards_of_slice(run):,} shards of slice {epoch + 1}",
            shards,
            limit,
        )
    if num_samples > limit * run.slice_samples:
        return _too_much(
            f"{num_samples:,} of the {run.slice_samples:,} samples of slice {epoch + 1}", {}, limit
        )
    return ""


def num_shards_of_slice(run: Run) -> int:
    """Returns the number of shards of a slice."""
    return math.ceil(_num_shards(run.data) / run.recipe.slices)


@functools.lru_cache(maxsize=1)
def _num_shards(data: str) -> int:
    return len(expand(data))


def _too_much(found: str, shards: Mapping[str, str], limit: float) -> str:
    named = listed((f"{shard} ({why})" for shard, why in shards.items()), NUM_NAMED)
    return (
        f"{found} cannot be read, more than --unreadable-max {limit:g} "
        f"allows{': ' if named else ''}{named}; superclip plan --check finds all bad files, "
        "and prints a pattern of the other shards"
    )


def accepted_data(run: Run, command: str, reads_data: bool = True) -> dict:
    """Checks the run's data, or only its pattern, prints the warnings, and returns the findings.

    Raises InputError for a problem, or if more files are bad than --unreadable-max allows.
    """
    checked = run.check_data() if reads_data else {"bad": [], "warnings": run.check_shards()}
    refuse_bad_files(run, checked)
    for warning in [*run.warnings, *checked["warnings"]]:
        print(f"superclip {command}: {warning}", file=sys.stderr, flush=True)
    return checked


def refuse_bad_files(run: Run, checked: dict) -> None:
    """Raises InputError if a check found more bad shards or images than --unreadable-max allows."""
    bad, limit = checked["bad"], run.settings.unreadable_max
    if not bad or len(bad) <= limit * checked["num_checked"]:
        return
    found = f"{len(bad):,} of {checked['num_checked']:,} {'images' if run.is_table else 'shards'}"
    named = {}
    for one in bad:
        name = f"row {one['row']} names {one['shard']}" if run.is_table else one["shard"]
        named[name] = one["problem"]
    raise InputError(_too_much(found, named, limit))
