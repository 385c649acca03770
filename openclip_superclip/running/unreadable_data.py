"""How much of its data a run could not read, and whether that is too much."""

import json
import math
from collections import Counter, defaultdict
from functools import cached_property
from pathlib import Path

from ..data.shard_pattern import expand
from ..errors import InputError
from ..planning.plan import Plan

SHOWN = 3  # shards


class UnreadableData:
    """Adds up what the ranks of all starts of a run have passed over.

    Args:
        ranks: the folder with a folder for each start.
        start: this start's name.
        limit: the share of a slice's shards, or samples, that may be unreadable.
    """

    def __init__(self, plan: Plan, ranks: Path, start: str, limit: float):
        self.plan, self.ranks, self.start, self.limit = plan, ranks, start, limit
        self.shards: dict[str, str] = {}  # of the whole run: why each cannot be read
        self.of_slice = defaultdict(set)  # of this start
        self.samples = Counter()  # by start and epoch
        self.read: dict[Path, int] = {}  # bytes of each file

    def look(self) -> dict[str, int]:
        """Returns the numbers for state.json."""
        for file in self.ranks.glob("*/unreadable_*.jsonl"):
            for line in self._added(file):
                if "shard" in line:
                    self.shards[line["shard"]] = line["why"]
                    if file.parent.name == self.start:
                        self.of_slice[line["epoch"]].add(line["shard"])
                else:
                    self.samples[file.parent.name, line["epoch"]] += 1
        return {"shards": len(self.shards), "samples": self._num_samples()}

    def check_missing(self, checked: dict) -> None:
        """Raises InputError where the data check has found too many shards that are missing or broken."""
        if checked["bad"] and len(checked["bad"]) > self.limit * checked["shards"]:
            bad = {one["shard"]: one["problem"] for one in checked["bad"]}
            raise InputError(self._refusal(f"{len(bad):,} of {checked['shards']:,} shards", bad))

    @cached_property
    def _shards_of_a_slice(self) -> int:
        return math.ceil(len(expand(self.plan.data)) / self.plan.slices_per_pass)

    def _added(self, file: Path) -> list[dict]:
        """Returns the whole lines that were added since the last look."""
        with open(file, "rb") as opened:
            opened.seek(self.read.get(file, 0))
            text = opened.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.read[file] = self.read.get(file, 0) + len(whole)
        return list(map(json.loads, whole.splitlines()))

    def _num_samples(self) -> int:
        """Returns the samples of the run, those of a slice that was trained twice as they were last."""
        of_epoch = {epoch: number for (_, epoch), number in self.samples.items()}
        return sum(of_epoch.values())

    def check(self) -> None:
        """Raises InputError where a slice that this start trains has too many."""
        num_shards = self._shards_of_a_slice
        for epoch, bad in self.of_slice.items():
            if len(bad) > self.limit * num_shards:
                found = f"{len(bad):,} of the {num_shards:,} shards of slice {epoch + 1}"
                raise InputError(self._refusal(found, {shard: self.shards[shard] for shard in sorted(bad)}))
        for (start, epoch), number in self.samples.items():
            if start == self.start and number > self.limit * self.plan.slice_samples:
                found = f"{number:,} of the {self.plan.slice_samples:,} samples of slice {epoch + 1}"
                raise InputError(self._refusal(found, {}))

    def _refusal(self, found: str, shards: dict[str, str]) -> str:
        named = [f"{shard} ({why})" for shard, why in list(shards.items())[:SHOWN]]
        more = f" and {len(shards) - SHOWN:,} more" if len(shards) > SHOWN else ""
        listed = f": {', '.join(named)}{more}" if named else ""
        return (
            f"{found} cannot be read, more than --unreadable-max {self.limit:g} allows{listed}; superclip plan --check "
            "reads all shards and gives a pattern without the bad ones"
        )
