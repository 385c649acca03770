"""The data that the ranks of a run could not read: counted, and too much of it is an error."""

import contextlib
import functools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..data.tar_shards import expand
from ..errors import InputError, listed, to_stderr
from ..plans.run import Run
from .progress import AddedLines

NUM_NAMED = 3  # shards that a message lists


@dataclass
class UnreadableData:
    """Counts the shards and samples that the ranks of all starts of a run could not read."""

    run: Run
    ranks: Path  # the folder with a folder for each start
    start: str  # the name of this one

    def __post_init__(self):
        self.shards: dict[str, str] = {}  # of the whole run: why each cannot be read
        self.of_slice = defaultdict(set)  # the shards of this start, by slice
        self.samples = Counter()  # by start and epoch
        self.added = AddedLines()

    def look(self) -> dict[str, int]:
        """Returns the numbers for state.json."""
        for file in self.ranks.glob("*/unreadable_*.jsonl"):
            for line in _listed(self.added.read(file)):
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
    lines = _listed(AddedLines().read(file))
    shards = [line.get("shard") for line in lines if line["epoch"] == epoch]
    return len({*shards} - {None}), shards.count(None)


def _listed(lines: bytes) -> Iterator[dict]:
    """Yields what lines of JSON describe; a full disk or a loss of power may have cut one."""
    for line in lines.splitlines():
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def too_much_unreadable(
    run: Run, epoch: int, num_shards: int, num_samples: int, shards: Mapping[str, str] | None = None
) -> str:
    """Returns the error if more of a slice cannot be read than --unreadable-max allows, else "";
    `shards` are named."""
    limit = run.settings.unreadable_max
    of_slice = f"of slice {epoch + 1}"
    shards_of_slice = math.ceil(_num_shards(run.data) / run.recipe.slices)
    if num_shards > limit * shards_of_slice:
        found = f"{num_shards:,} of the {shards_of_slice:,} shards {of_slice}"
        return _too_much(found, shards or {}, limit)
    if num_samples > limit * run.slice_samples:
        return _too_much(
            f"{num_samples:,} of the {run.slice_samples:,} samples {of_slice}", {}, limit
        )
    return ""


@functools.cache
def _num_shards(data: str) -> int:
    return len(expand(data))


def accepted_data(run: Run, command: str, *, reads_data: bool = True) -> dict:
    """Checks the run's data, or only its pattern, prints the warnings, and returns the findings.

    Raises InputError for a problem, or if more files are bad than --unreadable-max allows.
    """
    checked = run.check_data() if reads_data else {"bad": [], "warnings": run.check_shards()}
    refuse_bad_files(run, checked)
    for warning in [*run.warnings, *checked["warnings"]]:
        to_stderr(f"superclip {command}: {warning}")
    return checked


def refuse_bad_files(run: Run, checked: dict) -> None:
    """Raises InputError if a check found more bad shards or images than --unreadable-max allows."""
    bad = checked["bad"]
    limit = run.settings.unreadable_max
    if not bad or len(bad) <= limit * checked["num_checked"]:
        return
    named = {}
    for file in bad:
        name = f"row {file['row']} names {file['shard']}" if run.is_table else file["shard"]
        named[name] = file["problem"]
    kind = "images" if run.is_table else "shards"
    raise InputError(_too_much(f"{len(bad):,} of {checked['num_checked']:,} {kind}", named, limit))


def _too_much(found: str, shards: Mapping[str, str], limit: float) -> str:
    named = listed((f"{shard} ({why})" for shard, why in shards.items()), NUM_NAMED)
    return (
        f"{found} cannot be read, more than --unreadable-max {limit:g} "
        f"allows{': ' if named else ''}{named}; superclip plan --check finds all bad files, "
        "and prints a pattern of the other shards"
    )
