"""The data that the ranks of a run could not read: counted, and too much of it is an error."""

import contextlib
import functools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..data.data_check import DataCheck
from ..data.tar_shards import expand
from ..errors import InputError, listed, to_stderr
from ..plans.run import Run
from .progress import AddedLines

NUM_NAMED = 3  # shards that a message lists


@dataclass
class UnreadableData:
    """Counts the shards and samples that the ranks of all starts of a run could not read."""

    run: Run
    logs: Path  # the ranks' of this start, beside those of other starts

    def __post_init__(self):
        # by start and epoch: why each shard cannot be read, and the number of samples
        self.shards = defaultdict(dict)
        self.samples = Counter()
        self.added = AddedLines()

    def look(self) -> dict[str, int]:
        """Returns the numbers for state.json; InputError if a slice that this start trains has too
        many."""
        for file in self.logs.parent.glob("*/unreadable_*.jsonl"):
            for line in _listed(self.added.read(file)):
                trained = file.parent.name, line["epoch"]
                shards = self.shards[trained]
                if "shard" in line:
                    shards[line["shard"]] = line["why"]
                else:
                    self.samples[trained] += 1
        for (start, epoch), shards in sorted(self.shards.items()):
            if start == self.logs.name:
                named = dict(sorted(shards.items()))
                check_unreadable(self.run, epoch, len(shards), self.samples[start, epoch], named)
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


def check_unreadable(
    run: Run, epoch: int, num_shards: int, num_samples: int, shards: Mapping[str, str]
) -> None:
    """Raises InputError if more of a slice cannot be read than --unreadable-max allows; `shards`
    are named."""
    shards_of_slice = math.ceil(_num_shards(run.data) / run.recipe.slices)
    unreadable = {
        "shards": (num_shards, shards_of_slice),
        "samples": (num_samples, run.slice_samples),
    }
    for kind, (number, total) in unreadable.items():
        of_slice = f"the {total:,} {kind} of slice {epoch + 1}"
        _check_number(run, number, total, of_slice, shards)


@functools.cache
def _num_shards(data: str) -> int:
    return len(expand(data))


def accepted_data(run: Run, command: str, *, reads_data: bool = True) -> DataCheck | None:
    """Checks the run's data, or only its pattern, prints the warnings, and returns what a check of
    the data finds.

    Raises InputError for a problem, or if more files are bad than --unreadable-max allows.
    """
    check = None
    if reads_data:
        check = run.check_data()
        refuse_bad_files(run, check)
    warnings = check.warnings if check else run.check_shards()
    for warning in [*run.warnings, *warnings]:
        to_stderr(f"superclip {command}: {warning}")
    return check


def refuse_bad_files(run: Run, check: DataCheck) -> None:
    """Raises InputError if a check found more bad shards or images than --unreadable-max allows."""
    named = {file.name: file.problem for file in check.bad}
    kind = "images" if run.is_table else "shards"
    total = check.num_checked
    _check_number(run, len(check.bad), total, f"{total:,} {kind}", named)


def _check_number(run: Run, number: int, total: int, files: str, named: Mapping[str, str]) -> None:
    """Raises InputError if more of `total` files cannot be read than --unreadable-max allows;
    `named` are the reasons by file."""
    limit = run.settings.unreadable_max
    if number > limit * total:
        reasons = listed((f"{file} ({why})" for file, why in named.items()), NUM_NAMED)
        raise InputError(
            f"{number:,} of {files} cannot be read, more than --unreadable-max {limit:g} "
            f"allows{': ' if reasons else ''}{reasons}; superclip check DATA finds all bad "
            "files"
        )
