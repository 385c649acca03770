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
        # by start and epoch: why each shard cannot be read, and the number of samples
        self.shards: defaultdict[tuple[str, int], dict[str, str]] = defaultdict(dict)
        self.samples = Counter()
        self.added = AddedLines()

    def look(self) -> dict[str, int]:
        """Returns the numbers for state.json; InputError if a slice that this start trains has too
        many."""
        for file in self.ranks.glob("*/unreadable_*.jsonl"):
            for line in _listed(self.added.read(file)):
                trained = file.parent.name, line["epoch"]
                if "shard" in line:
                    self.shards[trained][line["shard"]] = line["why"]
                else:
                    self.samples[trained] += 1
        for start, epoch in sorted({*self.shards, *self.samples}):
            shards = dict(sorted(self.shards[start, epoch].items()))
            counts = len(shards), self.samples[start, epoch]
            problem = too_much_unreadable(self.run, epoch, *counts, shards)
            if problem and start == self.start:
                raise InputError(problem)
        # a slice trained twice counts once
        of_epoch = {epoch: number for (_, epoch), number in self.samples.items()}
        shards = set().union(*self.shards.values())
        return {"shards": len(shards), "samples": sum(of_epoch.values())}


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
    run: Run, epoch: int, num_shards: int, num_samples: int, shards: Mapping[str, str]
) -> str:
    """Returns the error if more of a slice cannot be read than --unreadable-max allows, else "";
    `shards` are named."""
    limit = run.settings.unreadable_max
    shards_of_slice = math.ceil(_num_shards(run.data) / run.recipe.slices)
    unreadable = {
        "shards": (num_shards, shards_of_slice),
        "samples": (num_samples, run.slice_samples),
    }
    for kind, (number, total) in unreadable.items():
        if number > limit * total:
            found = f"{number:,} of the {total:,} {kind} of slice {epoch + 1}"
            return _too_much(found, shards, limit)
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
