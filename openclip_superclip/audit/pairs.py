"""Reads the pairs of a table, a folder or shards in a fixed order."""

import hashlib
import itertools
import json
import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from webdataset.tariterators import base_plus_ext

from ..data.conversion import Keys, Pair, pairs_of_folder, pairs_of_table
from ..data.images import open_image, unreadable
from ..data.inspection import listed_samples
from ..data.shards import BROKEN, IMAGES, expand, is_remote, read_members, why_broken
from ..data.tables import Columns, is_table
from ..errors import InputError

AHEAD = 2  # batches to prefetch
NO_CAPTION, NO_IMAGE = "no caption", "no image"  # incomplete pairs, which do not count as unreadable


class AuditedPair(NamedTuple):
    """A pair, or the reason why it cannot be scored."""

    place: tuple[int, int]  # (shard, sample) or (0, row), in the order of the data
    where: str  # shard, row or file, for messages
    key: str  # the sample's key, or the image's path
    caption: str
    image: str | bytes | Tensor | None  # path or content; [3, H, W] after reading; None if unreadable
    problem: str = ""
    uid: str = ""  # DataComp's uid, if the sample has one


def read_in_batches(
    pairs: Iterator[AuditedPair], preprocess: Callable, batch_size: int, threads: int
) -> Iterator[list[AuditedPair]]:
    """Yields batches of pairs, in order, with preprocessed images. Only the last batch may be smaller."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque = deque()
        while batch := list(itertools.islice(pairs, batch_size)):
            waiting.append([pool.submit(_read, pair, preprocess) for pair in batch])
            if len(waiting) > AHEAD:
                yield [read.result() for read in waiting.popleft()]
        while waiting:
            yield [read.result() for read in waiting.popleft()]


def _read(pair: AuditedPair, preprocess: Callable) -> AuditedPair:
    if pair.problem:
        return pair._replace(image=None)
    if isinstance(pair.image, str) and is_remote(pair.image):
        return pair._replace(image=None, problem="a URL: images of a table are read from files")
    try:
        with open_image(pair.image) as image:
            return pair._replace(image=preprocess(image))
    except Exception as error:  # a damaged file raises anything
        return pair._replace(image=None, problem=unreadable(error))


class Part(NamedTuple):
    """One of several parts of the data."""

    number: int  # from 1
    of: int

    def holds(self, index: int) -> bool:
        """Returns whether the pair or shard at an index belongs to the part."""
        return index % self.of == self.number - 1


WHOLE = Part(1, 1)


class AuditedFiles:
    """The rows of a table, or the images of a folder with captions beside them.

    Attributes:
        digest: a hash of the captions, and of the names, sizes and modification times of the images.
        num_units: number of pairs, which are divided among parts.
    """

    unit = "pairs"

    def __init__(self, given: str, columns: Columns):
        self.given, self.keys, self.columns, self.is_table = given, Keys(columns), columns, is_table(given)
        digest, image, num_found, self.num_units = hashlib.sha256(), "", 0, 0
        for _, image, caption, *_ in self._pairs():
            state = _state(image)
            num_found += state != "" or is_remote(image)
            self.num_units += 1
            digest.update(f"{image}\0{caption}\0{state}\0".encode("utf-8", "replace"))
        self.digest = digest.hexdigest()
        if not self.num_units:
            raise InputError(
                f"DATA: {given} holds no pair: expected rows, or images with a .txt or .json of the same name beside "
                "them; name shards by a pattern such as 'DIR/{00000..00099}.tar', in quotes"
            )
        if not num_found:
            raise InputError(
                f"DATA: none of the {self.num_units:,} images of {given} exists, such as {image}: paths are relative "
                f"to {os.getcwd()}, the working directory"
            )

    def num_of(self, part: Part) -> int:
        """Returns the number of pairs in a part."""
        return len(range(part.number - 1, self.num_units, part.of))

    def pairs(self, part: Part, after: tuple[int, int] = (0, -1)) -> Iterator[AuditedPair]:
        """Yields the pairs of a part after the given place."""
        for row, pair in enumerate(self._pairs()):
            if row > after[1] and part.holds(row):
                problem = _problem(pair.image, pair.caption)
                yield AuditedPair((0, row), pair.where, pair.image, pair.caption, pair.image, problem)

    def _pairs(self) -> Iterator[Pair]:
        if self.is_table:
            return pairs_of_table(self.given, self.keys, "DATA")
        return pairs_of_folder(Path(self.given), self.keys)


class AuditedShards:
    """The samples of WebDataset shards.

    Attributes:
        digest: a hash of the names, sizes and modification times of the shards.
        num_units: number of shards, which are divided among parts.
    """

    unit, columns = "shards", ()

    def __init__(self, given: str):
        self.given, self.shards = given, expand(given, "DATA")
        if not any(is_remote(shard) or os.path.exists(shard) for shard in self.shards):
            raise InputError(f"DATA: there is no file {self.shards[0]}")
        self.num_units = len(self.shards)
        states = "\0".join(f"{shard}\0{_state(shard)}" for shard in self.shards)
        self.digest = hashlib.sha256(states.encode("utf-8", "replace")).hexdigest()

    def num_of(self, part: Part) -> int | None:
        """Returns the number of pairs in a part, or None if it is unknown."""
        shards = [shard for index, shard in enumerate(self.shards) if part.holds(index)]
        listed = listed_samples(shards)
        return sum(listed.values()) if len(listed) == len(shards) else None

    def pairs(self, part: Part, after: tuple[int, int] = (0, -1)) -> Iterator[AuditedPair]:
        """Yields the pairs of a part after the given place, and one pair with the problem for each damaged shard."""
        for index, shard in enumerate(self.shards):
            if part.holds(index) and index >= after[0]:
                yield from (pair for pair in _pairs_of_shard(index, shard) if pair.place > tuple(after))


def open_data(given: str, columns: Columns) -> AuditedFiles | AuditedShards:
    """Returns the data set named by DATA. Raises InputError for an unsupported one."""
    if is_table(given) or os.path.isdir(given):
        return AuditedFiles(given, columns)
    first = expand(given, "DATA")[0]
    if first.endswith(".tar") or is_remote(first):
        return AuditedShards(given)
    missing = "" if os.path.exists(given) else ": there is no such file or folder"
    raise InputError(
        f"DATA is {given}{missing}; expected a table (.csv, .tsv), a folder of images with a .txt beside each, or "
        "shards (.tar); superclip shards converts COCO's JSON"
    )


def _problem(image: str | bytes, caption: str) -> str:
    return NO_IMAGE if not image else "" if caption else NO_CAPTION


def _state(path: str) -> str:
    """Returns the size and modification time of a file, or "" if it does not exist, as for URLs."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return ""
    return f"{state.st_size} {state.st_mtime_ns}"


def _pairs_of_shard(index: int, shard: str) -> Iterator[AuditedPair]:
    number = -1
    try:
        for number, sample in enumerate(read_members(shard, {"txt", "json", *IMAGES})):
            caption = sample.get("txt", b"").decode("utf-8", "replace").strip()
            image = next((sample[extension] for extension in IMAGES if extension in sample), b"")
            problem, uid = _problem(image, caption), _uid(sample.get("json", b""))
            yield AuditedPair((index, number), shard, sample["__key__"], caption, image, problem, uid)
    except BROKEN as error:
        yield AuditedPair((index, number + 1), shard, "", "", b"", why_broken(error))


def _uid(content: bytes) -> str:
    """Returns DataComp's uid, 32 hexadecimal digits, from a sample's JSON, or "" if there is none."""
    if b'"uid"' not in content:
        return ""
    try:
        uid = json.loads(content)["uid"]
        return uid if len(uid) == 32 and set(uid) <= set("0123456789abcdef") else ""
    except (ValueError, TypeError, KeyError):
        return ""


def numbered_members(tar: tarfile.TarFile) -> Iterator[tuple[int, str, tarfile.TarInfo]]:
    """Yields sample number, extension and header of each file in a shard, grouped into samples as in OpenCLIP."""
    number, key, extensions = -1, None, set()
    for member in tar:
        tar.members.clear()  # otherwise tarfile keeps every header in memory
        prefix, extension = base_plus_ext(member.name)
        if not member.isfile() or prefix is None:
            continue
        if prefix != key or extension.lower() in extensions:
            number, key, extensions = number + 1, prefix, set()
        extensions.add(extension.lower())
        yield number, extension.lower(), member
