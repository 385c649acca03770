"""WebDataset shards: names and patterns, samples as OpenCLIP groups them, and truncated and damaged
files.

In training, trainer/data.py skips and lists such a shard, and runs/unreadable.py limits their
number."""

import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from urllib.parse import urlparse

import braceexpand

from ..errors import InputError, as_input_error

# exceptions raised for an unreadable shard
BROKEN = (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error)
# at the end of a file without an end marker, and in the middle of a damaged one
NO_MEMBER = (tarfile.EmptyHeaderError, tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError)


NO_FILE = "no such file"


def why_broken(error: Exception) -> str:
    """Returns why a shard cannot be read, from one of the BROKEN exceptions."""
    if isinstance(error, FileNotFoundError):
        return NO_FILE
    # tarfile lists every format it tried
    return f"broken tar file ({str(error).partition(':')[0]})"


class StrictTarInfo(tarfile.TarInfo):
    """A member's header; a broken or missing one raises ReadError.

    tarfile takes broken ones for the end of the file, which blocks of zeros should mark.
    """

    @classmethod
    def fromtarfile(cls, tar):
        try:
            return super().fromtarfile(tar)
        except NO_MEMBER as error:
            if tar.offset == 0:  # for which tarfile has an error
                raise
            raise tarfile.ReadError(
                f"there is no valid tar member and no end marker at byte {tar.offset:,}"
            ) from error


def expand(pattern: str, flag: str = "--data") -> list[str]:
    """Expands one or several patterns joined by `::`; InputError for unbalanced braces."""
    with as_input_error(f"{flag} is no pattern of shards"):
        return [name for part in pattern.split("::") for name in braceexpand.braceexpand(part)]


def check_any_exists(shards: Sequence[str], flag: str) -> None:
    """Raises InputError if all shards are local and none of them exists."""
    if not any(is_remote(shard) or os.path.exists(shard) for shard in shards):
        message = f"{flag}: there is no file {shards[0]}"
        if len(shards) > 1:
            message += f", nor any other of {len(shards):,} shards"
        if shards[0].startswith("demo/data/"):
            message += "; superclip demo --data-only writes the demo's"
        raise InputError(message)


def is_remote(shard: str) -> bool:
    """Returns whether webdataset opens a shard as a URL or as a command's output, both by a shell,
    instead of as a file."""
    try:
        return bool(urlparse(shard).scheme)  # as webdataset decides
    except ValueError:  # of a URL with errors
        return True


def is_streamed(data: str | None) -> bool:
    """Returns whether data are a URL or a command's output, or contain such shards."""
    if not data or ":" not in data:  # no scheme: a pattern of files may have many names
        return False
    return any(map(is_remote, expand(data)))


# the members that OpenCLIP trains on; of several in a sample, the first
IMAGES = ("jpg", "png", "jpeg", "webp")


def is_trained(sample: dict, caption: str) -> bool:
    """Returns whether OpenCLIP trains on a sample: it has an image and a caption."""
    return caption in sample and any(image in sample for image in IMAGES)


def read_members(shard: str, wanted: set[str]) -> Iterator[dict]:
    """Yields all samples as OpenCLIP groups them, by extension (b"" if not `wanted`, which the
    caller may change between two samples); may raise one of BROKEN."""
    stream = None
    if is_remote(shard):
        from webdataset import gopen

        stream = gopen(shard)
    sample = {}
    last = -1
    try:
        with tarfile.open(shard, "r|*" if stream else "r", stream, tarinfo=StrictTarInfo) as tar:
            for number, key, extension, member in numbered_members(tar):
                if number != last:
                    if sample:
                        yield sample
                    sample = {"__key__": key}
                    last = number
                sample[extension] = tar.extractfile(member).read() if extension in wanted else b""
    except BROKEN:
        if sample:  # the members before the defect, on which OpenCLIP trains
            yield sample
        raise
    if sample:
        yield sample


def numbered_members(tar: tarfile.TarFile) -> Iterator[tuple[int, str, str, tarfile.TarInfo]]:
    """Yields the number and key of the sample, as OpenCLIP groups them, and extension and header
    of each file."""
    number = -1
    key = None
    extensions = set()
    for member in tar:
        tar.members.clear()  # otherwise tarfile keeps every header in memory
        name = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", member.name)
        if not member.isfile() or name is None:
            continue
        extension = name[2].lower()
        if name[1] != key or extension in extensions:
            number += 1
            key = name[1]
            extensions = set()
        extensions.add(extension)
        yield number, key, extension, member
