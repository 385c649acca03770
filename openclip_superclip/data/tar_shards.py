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

from ..errors import InputError, reason

# exceptions raised for an unreadable shard
BROKEN = (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error)
# at the end of a file without an end marker, and in the middle of a damaged one
NO_MEMBER = (tarfile.EmptyHeaderError, tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError)


NO_FILE = "no such file"

MAX_SHARDS = 10**6  # that data may name
MAX_NESTED = 20  # braces in braces
INNER_BRACES = re.compile(r"\{([^{}]*)\}")


def why_broken(error: Exception) -> str:
    """Returns why a shard cannot be read, from one of the BROKEN exceptions."""
    if isinstance(error, FileNotFoundError):
        return NO_FILE
    # tarfile lists every format it tried
    return f"broken tar file ({str(error).partition(':')[0]})"


class StrictTarInfo(tarfile.TarInfo):
    """A member's header; a broken or missing one raises ReadError, and a sparse one, which may
    stand for more than the disk holds.

    tarfile takes broken ones for the end of the file, which blocks of zeros should mark.
    """

    @classmethod
    def fromtarfile(cls, tar):
        try:
            member = super().fromtarfile(tar)
        except ValueError as error:  # for a number of a sparse member
            raise tarfile.ReadError(str(error)) from error
        except NO_MEMBER as error:
            if tar.offset == 0:  # for which tarfile has an error
                raise
            raise tarfile.ReadError(
                f"there is no valid tar member and no end marker at byte {tar.offset:,}"
            ) from error
        if member.issparse():
            raise tarfile.ReadError(f"{member.name} is sparse")
        return member


def expand(pattern: str, flag: str = "--data") -> list[str]:
    """Expands one or several patterns joined by `::`; InputError for a pattern that OpenCLIP
    does not support."""
    try:
        names = _names(pattern)
    except ValueError as error:
        raise InputError(
            f"{flag}: {reason(error)}; expected a pattern such as 'x/{{00000..00041}}.tar', in "
            "quotes"
        ) from None
    first = names[0]
    if not is_remote(first) and (os.path.isdir(first) or "*" in first):
        raise InputError(
            f"{flag}: {first} is a folder or has a *; expected a pattern such as "
            "'x/{00000..00099}.tar'"
        )
    return names


def _names(pattern: str) -> list[str]:
    """Returns the names of a pattern; ValueError for unbalanced braces and too many names."""
    parts = pattern.split("::")
    if sum(map(_num_names, parts)) > MAX_SHARDS:
        raise ValueError(f"{pattern} names more than {MAX_SHARDS:,} shards")
    return [name for part in parts for name in braceexpand.braceexpand(part)]


def _num_names(pattern: str) -> int:
    """Returns the number of names of a pattern with balanced braces, without expanding it, up to
    MAX_SHARDS + 1."""
    text = re.sub(r"\\.|[<>]", "", pattern)  # escaped characters; < and > enclose numbers below
    for _ in range(MAX_NESTED):
        text = INNER_BRACES.sub(_num_of_braces, text)
    if INNER_BRACES.search(text):
        raise ValueError(f"{pattern[:100]}… has more than {MAX_NESTED} braces in braces")
    return _product(text)


def _num_of_braces(braces: re.Match) -> str:
    """Returns <N> for braces without braces inside that stand for N names."""
    if match := braceexpand.int_range_re.match(braces[1]):
        start, end, step = (int(number or 1) for number in match.groups())
        number = abs(end - start) // (step or 1) + 1
    elif match := braceexpand.char_range_re.match(braces[1]):
        number = len(braceexpand.make_char_range(*match.groups()))
    else:
        number = sum(map(_product, braces[1].split(",")))
    return f"<{min(number, MAX_SHARDS + 1)}>"


def _product(text: str) -> int:
    """Returns the product of the numbers in <N>, up to MAX_SHARDS + 1."""
    product = 1
    for number in re.findall(r"<(\d+)>", text):
        product = min(product * int(number), MAX_SHARDS + 1)
    return product


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
    try:
        return any(map(is_remote, _names(data)))
    except ValueError:  # `expand` refuses it
        return is_remote(data)


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

        try:
            stream = gopen(shard)
        except ValueError as error:
            raise InputError(
                f"{shard} is a URL that webdataset cannot open; expected a file, another URL or "
                "pipe:COMMAND, such as 'pipe:aws s3 cp URL -'"
            ) from error
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
