"""--stage: copies the shards that a node's ranks read to the node's own disk, a slice ahead of
them."""

import hashlib
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..data.shard_order import slice_of
from ..data.tar_shards import expand
from ..errors import InputError, to_stderr
from ..files import keep_private, whole_file
from ..plans.run import Run
from .folder import RunFolder, check_room
from .slurm import Placement, this_host

COPIES = 4  # at a time
CHUNK = 8 << 20  # bytes


class StagedShards:
    """The copies in a folder; a shard without a copy is read from its original path."""

    def __init__(self, folder: Path):
        self.folder = folder

    def copy_of(self, shard: str) -> Path:
        """Returns the path of a shard's complete copy."""
        return self.folder / os.path.abspath(shard).lstrip("/")

    def shards(self, shards: Iterable[dict]) -> Iterator[dict]:
        """Yields webdataset's shards, with the path of the copy if it exists by then."""
        for shard in shards:
            copy = self.copy_of(shard["url"])
            yield {**shard, "url": str(copy)} if copy.exists() else shard

    def name(self, file: str) -> str:
        """Returns the absolute path of a shard, or of the one of which a file is the copy."""
        return os.path.abspath(file).removeprefix(str(self.folder))


class Staging(StagedShards):
    """A context in which one node's shards are copied; the copies are removed at the end.

    A node copies the shards that its own ranks read, of the current slice and the next one, to the
    folder `stage` on its disk, which may contain environment variables: $TMPDIR. Copies of a killed
    start are removed.
    """

    def __init__(self, run: Run, placement: Placement, folder: RunFolder, stage: str):
        self.run = run
        self.placement = placement
        self.run_folder = folder
        self.disk = Path(os.path.expandvars(stage)).expanduser().absolute()
        digest = hashlib.blake2b(os.fsencode(folder.path.resolve()), digest_size=8).hexdigest()
        super().__init__(self.disk / f"superclip-{digest}-{this_host()}")  # nodes may share a disk
        self.names = expand(run.data)
        self.first = threading.Event()  # set once the slice that is trained first has been copied
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._copy_slices, daemon=True)
        self.has_failed = False

    def __enter__(self) -> "Staging":
        """Removes old copies, checks the disk, and starts to copy; InputError if the disk is
        missing or too small."""
        if not self.disk.is_dir() or not os.access(self.disk, os.W_OK):
            raise InputError(
                f"--stage is {self.disk} on {this_host()}; expected a folder there that can be "
                "written to, such as /local or $TMPDIR in quotes"
            )
        shutil.rmtree(self.folder, ignore_errors=True)
        epoch = self.run_folder.epoch
        # a missing one is reported when it is copied
        shards = filter(os.path.exists, {*self._shards(epoch), *self._shards(epoch + 1)})
        check_room(
            f"--stage: the disk of {self.disk} on {this_host()}",
            self.disk,
            sum(map(os.path.getsize, shards)),
            "two slices of its ranks' shards take",
            "give a larger disk, more nodes, or the recipe more slices",
        )
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop.set()
        self.thread.join()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _copy_slices(self) -> None:
        """Copies the current slice and the next one, and another one whenever a slice is
        trained."""
        try:
            for epoch in range(self.run_folder.epoch, self.run.num_slices):
                while (current := self.run_folder.epoch) < epoch - 1:
                    if self.stop.wait(1):
                        return
                shards = [*self._shards(current), *self._shards(epoch)]
                wanted = set(map(self.copy_of, shards))
                for path in list(self.folder.rglob("*")):
                    if path.is_file() and path not in wanted:
                        path.unlink()
                with ThreadPoolExecutor(COPIES) as pool:
                    list(pool.map(self._copy, dict.fromkeys(self._shards(epoch))))
                self.first.set()
                if self.stop.is_set():
                    return
        finally:
            self.first.set()  # even after an error: the ranks then read the originals

    def _shards(self, epoch: int) -> list[str]:
        """Returns the shards of a slice that this node's ranks read, in their order; none after
        the last slice."""
        if epoch >= self.run.num_slices:
            return []
        run = self.run
        places = slice_of(len(self.names), run.recipe.slices, run.recipe.seed, epoch)
        # webdataset gives the shards to the ranks in turn
        return [
            self.names[index]
            for place, index in enumerate(places)
            if place % run.world_size // run.gpus_per_node == self.placement.node
        ]

    def _copy(self, shard: str) -> None:
        """Copies a shard; an incomplete copy has a temporary name."""
        copy = self.copy_of(shard)
        if self.stop.is_set() or copy.exists():
            return
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            with open(shard, "rb") as file, whole_file(copy) as to:
                keep_private(Path(to.name), Path(shard))
                while chunk := file.read(CHUNK):
                    to.write(chunk)
                    if self.stop.is_set():
                        raise InterruptedError
        except OSError as error:
            if not self.has_failed and not self.stop.is_set():
                to_stderr(
                    f"superclip run: --stage: {shard} is read from its original path, because "
                    f"copying failed ({error.strerror or error}); others are not reported"
                )
            self.has_failed = True
