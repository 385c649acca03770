"""Copies of shards on a node's own disk, which its ranks read in the place of the shards."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path


class StagedShards:
    """The copies in a folder; none of them need be there: a shard without one is read where it lies."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._shard_of: dict[str, str] = {}  # a copy's, of those that this process reads

    def copy_of(self, shard: str) -> Path:
        """Returns where a shard's copy lies, once it is whole."""
        return self.folder / os.path.abspath(shard).lstrip("/")

    def shards(self, shards: Iterable[dict]) -> Iterator[dict]:
        """Yields webdataset's shards, each with its copy in the place of its name where there is one by then."""
        for shard in shards:
            copy = self.copy_of(shard["url"])
            if copy.exists():
                self._shard_of[str(copy)] = shard["url"]
                shard = {**shard, "url": str(copy)}
            yield shard

    def name(self, copy: str) -> str:
        """Returns the shard that this process has read a copy of; other names as they are."""
        return self._shard_of.get(copy, copy)
