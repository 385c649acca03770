"""What shards hold, as far as training needs it."""

import functools
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
from typing import NamedTuple, TypeVar

import braceexpand
from tqdm import tqdm

from ..environment import end_with_parent
from ..errors import InputError


def expand(pattern: str, flag: str = "--data") -> list[str]:
    """Returns the names of a pattern or of several joined by `::`; InputError for braces that do not match."""
    try:
        return [name for part in pattern.split("::") for name in braceexpand.braceexpand(part)]
    except ValueError as error:
        raise InputError(
            f"{flag}: {pattern} has unbalanced braces ({' '.join(str(error).split())}); expected such as "
            "'x/{00000..00041}.tar', in quotes"
        ) from None


def refuse_other_patterns(first: str, flag: str = "--data") -> None:
    """Raises InputError where the first file is a folder or holds a *, which OpenCLIP does not look into."""
    if is_remote(first):
        return
    if os.path.isdir(first):
        raise InputError(f"{flag}: {first} is a folder; expected its shards, such as '{first}/{{00000..00099}}.tar'")
    if "*" in first:
        raise InputError(f"{flag}: {first} has a *; expected braces, such as '{{00000..00099}}.tar'")


def is_remote(shard: str) -> bool:
    """Returns whether a shard is a URL or the output of a command, which no look at the file system finds."""
    return "://" in shard or shard.startswith("pipe:")


def contract(names: Sequence[str]) -> str:
    """Returns a pattern of these names in this order; neighbours that differ by a number, counting up, join a brace."""
    return "::".join(prefix + _braces(list(numbers)) + suffix for (prefix, suffix), numbers in _by_frame(names))


def _by_frame(names: Iterable[str]) -> Iterator[tuple[tuple[str, str], Iterator[str]]]:
    """Yields what stands around the last number of the names, and the numbers of neighbours with equal frames."""
    split = (re.fullmatch(r"(.*?)(\d*)(\D*)", name, flags=re.DOTALL).groups() for name in names)
    for frame, group in itertools.groupby(split, key=lambda parts: (parts[0], parts[2])):
        yield frame, (number for _, number, _ in group)


def _braces(numbers: list[str]) -> str:
    runs = []
    for number in numbers:
        last = runs[-1][-1] if runs else ""
        if last and number and len(number) == len(last) and int(number) == int(last) + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    parts = [f"{{{run[0]}..{run[1]}}}" if len(run) == 2 else run[0] for run in runs]
    return parts[0] if len(parts) == 1 else f"{{{','.join(parts)}}}"


def read_captions(shard: str, long_caption: str = "") -> Iterator[dict]:
    """Yields the samples that OpenCLIP would train on: captions as bytes, whatever else they hold as b"".

    Args:
        shard: a file, which is read only where captions are, or a URL or pipe, of which the rest is passed over.
        long_caption: where the long caption is, a member or `json:FIELD`.
    """
    for sample in read_samples(shard, long_caption):
        if "txt" in sample and any(extension in sample for extension in IMAGES):
            yield sample


def read_samples(shard: str, long_caption: str = "") -> Iterator[dict]:
    """Yields all samples as `read_captions` does, with or without caption and picture."""
    json = long_caption.startswith("json:")
    yield from read_members(shard, {"txt", "json" if json else long_caption.lower().lstrip(".")})


def read_members(shard: str, wanted: set[str]) -> Iterator[dict]:
    """Yields all samples with the members whose extensions are `wanted` as bytes, and the others as b""."""
    from webdataset.tariterators import base_plus_ext

    sample = {}
    for file in _files(shard, wanted):
        key, extension = base_plus_ext(file["fname"])
        if key is None:
            continue
        extension = extension.lower()
        if sample and (key != sample["__key__"] or extension in sample):  # a tar may begin with the key that ended one
            yield sample
            sample = {}
        sample = sample or {"__key__": key, "__url__": file["__url__"]}
        sample[extension] = file["data"]
    if sample:
        yield sample


def _files(shard: str, wanted: set[str]) -> Iterator[dict]:
    with _open(shard) as tar:
        for member in tar:
            if member.isfile():
                extension = member.name.rpartition("/")[2].partition(".")[2].lower()
                data = tar.extractfile(member).read() if extension in wanted else b""
                yield {"fname": member.name, "data": data, "__url__": shard}
            tar.members.clear()  # tarfile keeps every header it has read
        if not is_remote(shard):
            _check_end(tar)


def _check_end(tar: tarfile.TarFile) -> None:
    """Raises tarfile.ReadError where tarfile has taken broken data for the end of the archive."""
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"what should be a member at byte {tar.offset:,} is none")


def _open(shard: str) -> tarfile.TarFile:
    if is_remote(shard):
        from webdataset import gopen

        return tarfile.open(fileobj=gopen(shard), mode="r|*")
    return tarfile.open(shard)


IMAGES = ("png", "jpg", "jpeg", "webp")  # OpenCLIP's


class Look(NamedTuple):
    """What was found in a shard; `problem` says why training would find nothing in it, or not all, and is "" if not."""

    shard: str
    num_samples: int  # with picture and caption, up to where it can be read
    num_long: int  # of them, with a long caption
    members: str  # of all samples
    problem: str


def look_at(shards: list[str], place: str, jobs: int | None = None) -> list[Look]:
    """Returns a look at each of the local shards, from `jobs` processes (None: one a core) where they are many."""
    if len(shards) <= 2:
        return [look(shard, place) for shard in shards]
    looks = work_on(functools.partial(look, place=place), shards, jobs or os.cpu_count() or 1, "--jobs")
    return list(tqdm(looks, total=len(shards), desc="reading shards", unit=" shards"))


def look(shard: str, place: str = "", until_found: bool = False) -> Look:
    """Reads a local shard, its pictures passed over.

    Args:
        place: the long caption's, "" for none.
        until_found: whether to stop once there was a caption, and a long one, instead of at the shard's end.
    """
    num_samples = num_long = 0
    members, problem, has_caption = {}, "", False
    try:
        for sample in read_samples(shard, place):
            if "txt" in sample and any(image in sample for image in IMAGES):
                num_samples += 1
                has_caption = has_caption or bool(sample["txt"].strip())
                num_long += bool(place) and _has_long_caption(sample, place)
            members |= dict.fromkeys(name for name in sample if not name.startswith("__"))
            if until_found and has_caption and (num_long or not place):
                break
    except (OSError, EOFError, tarfile.TarError) as error:
        problem = f"not a whole tar file ({str(error).partition(':')[0]})"  # tarfile goes on with what it has tried
    found = ", ".join(members) or "nothing"
    if not problem and not num_samples:
        problem = f"no sample has a picture (.{', .'.join(IMAGES)}) and a caption (.txt); its members are {found}"
    elif not problem and not has_caption:
        problem = "all of its captions (.txt) are empty"
    return Look(shard, num_samples, num_long, found, problem)


def _has_long_caption(sample: dict, place: str) -> bool:
    try:
        return bool(long_caption(sample, place))
    except ValueError:  # cannot be read: OpenCLIP skips it
        return False


Item, Result = TypeVar("Item"), TypeVar("Result")


_of_this_process: dict[str, Callable] = {}  # a fork inherits what cannot be sent: a data set, what reads it


def work_on(work: Callable[[Item], Result], items: Sequence[Item], num_workers: int, flag: str) -> Iterator[Result]:
    """Yields `work(item)` of each item, in their order, from so many processes; none is left where it is closed.

    Args:
        work: need not be one that can be sent to a process; its results are.
        flag: of the command line, which says how many workers there are.

    Raises InputError where a worker is killed, as the kernel does where memory is short.
    """
    num_workers = min(num_workers, len(items))
    if num_workers < 1:
        return
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("fork"), _begin, (work,))
    try:
        yield from pool.map(_work, items)
    except BrokenProcessPool:
        fewer = f"use fewer {flag} than {num_workers}" if num_workers > 1 else "this machine has too little for one"
        raise InputError(f"{flag}: a worker was killed (out of memory?): {fewer}") from None
    finally:
        workers = set(multiprocessing.active_children()) - before
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def _begin(work: Callable) -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all: the first process ends the others
    _of_this_process["work"] = work


def _work(item):
    return _of_this_process["work"](item)


def long_caption(sample: dict, place: str) -> str:
    """Returns the caption at `place`, a member, a column or `json:a.b`, a field of the JSON; "" where there is none."""
    if not place.startswith("json:"):
        return _text(sample.get(place, sample.get(place.lower().lstrip("."))))
    value = sample.get("json")
    if isinstance(value, (bytes, str)):
        value = json.loads(value)
    for name in place.removeprefix("json:").split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return _text(value)


def is_empty(value) -> bool:
    """Returns whether a cell or member holds no caption; pandas' empty cell is no word 'nan'."""
    return isinstance(value, float | str | bytes) and not _text(value)


def _text(value) -> str:
    """Returns the caption without blanks around it; a number's digits; "" for whatever else, such as an empty cell."""
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if isinstance(value, Number) and value == value:  # NaN is pandas' empty cell
        value = str(value)
    return value.strip() if isinstance(value, str) else ""
