"""WebDataset shards: names and patterns, samples as OpenCLIP groups them, and parallel reading."""

import itertools
import json
import multiprocessing
import os
import re
import signal
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from numbers import Number
from typing import TypeVar

import braceexpand

from ..environment import end_with_parent
from ..errors import InputError, reason


def expand(pattern: str, flag: str = "--data") -> list[str]:
    """Expands one or several patterns joined by `::`; InputError for a pattern that OpenCLIP
    does not support."""
    try:
        names = [name for part in pattern.split("::") for name in braceexpand.braceexpand(part)]
    except ValueError as error:
        raise InputError(
            f"{flag}: {pattern} has unbalanced braces ({reason(error)}); expected a pattern "
            "such as 'x/{00000..00041}.tar', in quotes"
        ) from None
    if not is_remote(names[0]) and os.path.isdir(names[0]):
        raise InputError(
            f"{flag}: {names[0]} is a folder; expected its shards, "
            f"'{names[0]}/{{00000..00099}}.tar'"
        )
    if not is_remote(names[0]) and "*" in names[0]:
        raise InputError(
            f"{flag}: {names[0]} has a *; expected braces, such as '{{00000..00099}}.tar'"
        )
    return names


def check_any_exists(shards: Sequence[str], flag: str) -> None:
    """Raises InputError if all shards are local and none of them exists."""
    if not any(is_remote(shard) or os.path.exists(shard) for shard in shards):
        others = f", nor any other of {len(shards):,} shards" if len(shards) > 1 else ""
        hint = "; superclip demo --data-only writes the demo's" * shards[0].startswith("demo/data/")
        raise InputError(f"{flag}: there is no file {shards[0]}{others}{hint}")


def is_remote(shard: str) -> bool:
    """Returns whether a shard is a URL or a command's output instead of a file."""
    return "://" in shard or shard.startswith("pipe:")


def contract(names: Sequence[str]) -> str:
    """Returns a pattern that expands to these names in this order, with consecutive numbers in
    braces."""
    split = (re.fullmatch(r"(.*?)(\d*)(\D*)", name, flags=re.DOTALL).groups() for name in names)
    # the text around the last number
    groups = itertools.groupby(split, key=lambda parts: (parts[0], parts[2]))
    return "::".join(
        before + _braces(number for _, number, _ in group) + after
        for (before, after), group in groups
    )


def _braces(numbers: Iterable[str]) -> str:
    runs = []
    for number in numbers:
        last = runs[-1][-1] if runs else ""
        if last and number and len(number) == len(last) and int(number) == int(last) + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    parts = [f"{{{run[0]}..{run[1]}}}" if len(run) == 2 else run[0] for run in runs]
    return parts[0] if len(parts) == 1 else f"{{{','.join(parts)}}}"


IMAGES = ("png", "jpg", "jpeg", "webp")  # the members that OpenCLIP trains on
BROKEN = (OSError, EOFError, tarfile.TarError)  # exceptions raised for an unreadable shard


def why_broken(error: Exception) -> str:
    """Returns why a shard cannot be read, from one of the BROKEN exceptions."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    # tarfile lists every format it tried
    return f"broken tar file ({str(error).partition(':')[0]})"


class StrictTarInfo(tarfile.TarInfo):
    """A member's header; a broken or missing one raises ReadError.

    tarfile takes these for the end of the file, which blocks of zeros should mark.
    """

    @classmethod
    def fromtarfile(cls, tar):
        try:
            return super().fromtarfile(tar)
        except tarfile.EmptyHeaderError as error:
            if tar.offset == 0:  # an empty file, for which tarfile has an error
                raise
            problem = f"it was cut at byte {tar.offset:,}, without an end marker"
            raise tarfile.ReadError(problem) from error
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:
            raise tarfile.ReadError(
                f"what should be a member at byte {tar.offset:,} is none"
            ) from error


def is_trained(sample: dict, caption: str) -> bool:
    """Returns whether OpenCLIP trains on a sample: it has an image and a caption."""
    return caption in sample and any(image in sample for image in IMAGES)


def caption_place(long_caption: str) -> str:
    """Returns `json:FIELD` unchanged, and an extension in WebDataset's spelling."""
    return long_caption if long_caption.startswith("json:") else long_caption.lower().lstrip(".")


def caption_member(long_caption: str) -> str:
    """Returns the extension of the member that contains the long caption."""
    return caption_place(long_caption).partition(":")[0]


def read_members(shard: str, wanted: set[str]) -> Iterator[dict]:
    """Yields all samples as OpenCLIP groups them, by extension (b"" if not `wanted`); may raise
    one of BROKEN."""
    stream = None
    if is_remote(shard):
        from webdataset import gopen

        stream = gopen(shard)
    sample, last = {}, -1
    try:
        with tarfile.open(shard, "r|*" if stream else "r", stream, tarinfo=StrictTarInfo) as tar:
            for number, key, extension, member in numbered_members(tar):
                if number != last:
                    if sample:
                        yield sample
                    sample, last = {"__key__": key, "__url__": shard}, number
                content = tar.extractfile(member).read() if extension in wanted else b""
                sample[extension] = content
    except BROKEN:
        if sample:  # the members before the defect, on which OpenCLIP trains
            yield sample
        raise
    if sample:
        yield sample


def numbered_members(tar: tarfile.TarFile) -> Iterator[tuple[int, str, str, tarfile.TarInfo]]:
    """Yields the number and key of the sample, as OpenCLIP groups them, and extension and header
    of each file."""
    number, key, extensions = -1, None, set()
    for member in tar:
        tar.members.clear()  # otherwise tarfile keeps every header in memory
        name = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", member.name)
        if not member.isfile() or name is None:
            continue
        extension = name[2].lower()
        if name[1] != key or extension in extensions:
            number, key, extensions = number + 1, name[1], set()
        extensions.add(extension)
        yield number, key, extension, member


Item, Result = TypeVar("Item"), TypeVar("Result")
# a fork inherits what cannot be pickled: a data set and its reader
_of_this_process: dict[str, Callable] = {}


def work_on(
    work: Callable[[Item], Result], items: Sequence[Item], num_workers: int, flag: str
) -> Iterator[Result]:
    """Yields `work(item)` of each item, in order, computed in parallel processes.

    Closing the generator ends the processes. `work` need not be picklable. Raises InputError,
    naming the `flag` that starts the workers, if one of them is killed, for example for lack of
    memory.
    """
    num_workers = min(num_workers, len(items))
    if num_workers < 1:
        return
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("fork"), _begin, (work,))
    try:
        yield from pool.map(_work, items)
    except BrokenProcessPool:
        raise InputError(
            f"{flag}: one of {num_workers} worker processes was killed, perhaps because memory "
            "ran out: use fewer of them or a machine with more memory"
        ) from None
    finally:
        workers = set(multiprocessing.active_children()) - before
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.kill()  # a worker inherits how this process handles SIGTERM
        for worker in workers:
            worker.join()


def _begin(work: Callable) -> None:
    end_with_parent()
    # Ctrl-C reaches all processes; the parent ends the workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _of_this_process["work"] = work


def _work(item):
    return _of_this_process["work"](item)


def long_caption(sample: dict, place: str) -> str:
    """Returns the caption at `place`, an extension, a column or a JSON field `json:a.b`; "" if
    missing."""
    if not place.startswith("json:"):
        return text_of(sample.get(place, sample.get(caption_place(place))))
    value = sample.get("json")
    if isinstance(value, (bytes, str)):
        value = json.loads(value)
    for name in place.removeprefix("json:").split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return text_of(value)


def has_long_caption(sample: dict, place: str) -> bool:
    """Returns whether there is a readable long caption at `place`."""
    try:
        return bool(long_caption(sample, place))
    except ValueError:
        return False


def is_empty(value) -> bool:
    """Returns whether a cell or member contains no caption; NaN, pandas' empty cell, is not the
    word 'nan'."""
    return isinstance(value, float | str | bytes) and not text_of(value)


def text_of(value) -> str:
    """Returns a stripped string, or a number as text; "" for anything else, such as an empty
    cell."""
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if isinstance(value, Number) and value == value:  # NaN is pandas' empty cell
        value = str(value)
    # JSON may hold half of a surrogate pair, which UTF-8 cannot encode
    return value.strip().encode(errors="replace").decode() if isinstance(value, str) else ""


def pickle_as_bytes(name: str, content: bytes) -> bytes | None:
    """Returns the content of a member that webdataset would unpickle, and None for others, which
    it decodes."""
    return content if name.endswith((".pickle", ".pth", ".pyd")) else None
