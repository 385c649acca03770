"""What OpenCLIP passes over because it cannot be read: shards, or the rest of one, and samples."""

import functools
import json
import os
import tarfile
import types
from collections.abc import Callable
from pathlib import Path

import open_clip_train.data
import webdataset.tariterators


def list_unreadable(file: Path, epoch, name: Callable[[str], str] = str) -> None:
    """Has this process and its data-loading workers add a line of JSON to `file` for all that training passes over.

    {"epoch": e, "shard": its name, "why": …} once an epoch and worker, or {"epoch": e, "sample": true, "why": …}. A
    tar file that ends in the midst of its members is told too; without this, tarfile takes broken data for its end.

    Args:
        epoch: OpenCLIP's shared epoch.
        name: returns the name of a shard that was read elsewhere.
    """
    unreadable = _Unreadable(file, epoch, name)
    data = open_clip_train.data
    data.tarfile_to_samples_nothrow = functools.partial(
        data.tarfile_to_samples_nothrow, handler=functools.partial(unreadable.shard, data.log_and_continue)
    )
    data.log_and_continue = functools.partial(unreadable.sample, data.log_and_continue)
    strictly = functools.partial(tarfile.open, tarinfo=_StrictTarInfo)
    webdataset.tariterators.tarfile = types.SimpleNamespace(open=strictly)


class _Unreadable:
    """Writes the lines; its methods are webdataset's handlers of exceptions, around OpenCLIP's."""

    def __init__(self, file: Path, epoch, name: Callable[[str], str]):
        self.file, self.epoch, self.name = file, epoch, name
        self.told = set()  # of this process

    def shard(self, handler, error: Exception) -> bool:
        shard = error.args[-1] if error.args else None
        key = (self.epoch.get_value(), shard)
        if isinstance(shard, str) and len(error.args) > 1 and key not in self.told:  # webdataset has added its name
            self.told.add(key)
            self._write({"shard": self.name(shard), "why": f"{type(error).__name__}: {error.args[0]}"})
        return handler(error)

    def sample(self, handler, error: Exception) -> bool:
        self._write({"sample": True, "why": f"{type(error).__name__}: {error}"})
        return handler(error)

    def _write(self, values: dict) -> None:
        line = json.dumps({"epoch": self.epoch.get_value(), **values}) + "\n"
        file = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, line.encode())  # at once: workers write to one file
        finally:
            os.close(file)


class _StrictTarInfo(tarfile.TarInfo):
    """A member's header, where one that is none does not pass for the end of the file."""

    @classmethod
    def fromtarfile(cls, tar):
        try:
            return super().fromtarfile(tar)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:
            raise tarfile.ReadError(f"what should be a member at byte {tar.offset:,} is none") from error
