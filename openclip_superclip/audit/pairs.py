"""The data that is audited, pair by pair and always in one order: a table, a folder or shards."""

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

from ..config import Config
from ..data.conversion import Keys, Pair, pairs_of_folder, pairs_of_table
from ..data.images import open_image, unreadable
from ..data.inspection import listed_samples
from ..data.shards import BROKEN, IMAGES, contract, expand, is_remote, read_members, refuse_other_patterns, why_broken
from ..data.tables import Columns, is_table, read_table
from ..errors import InputError
from ..files import content_digest

AHEAD = 2  # batches


class AuditedPair(NamedTuple):
    """A pair of the data, or what stands in the place of one."""

    place: tuple[int, int]  # shard and sample, or 0 and row: the order of the data
    where: str  # for people: the shard, the row, the file
    key: str  # the sample's key, or the picture's path
    caption: str
    picture: str | bytes  # its file, or what is in it
    problem: str = ""  # why there is no pair
    uid: str = ""  # DataComp's, where a sample has one


class ReadPair(NamedTuple):
    """A pair with its picture as the model takes it, or with the reason why it has none."""

    pair: AuditedPair
    picture: Tensor | None  # [3, H, W]
    problem: str = ""


def read_in_batches(
    pairs: Iterator[AuditedPair], preprocess: Callable, batch_size: int, threads: int
) -> Iterator[list[ReadPair]]:
    """Yields the pairs in their order, whole batches but for the last."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque = deque()
        while batch := list(itertools.islice(pairs, batch_size)):
            waiting.append([pool.submit(_read, pair, preprocess) for pair in batch])
            if len(waiting) > AHEAD:
                yield [read.result() for read in waiting.popleft()]
        while waiting:
            yield [read.result() for read in waiting.popleft()]


def _read(pair: AuditedPair, preprocess: Callable) -> ReadPair:
    if pair.problem:
        return ReadPair(pair, None, pair.problem)
    if isinstance(pair.picture, str) and is_remote(pair.picture):
        return ReadPair(pair, None, "a URL: images of a table are read from files")
    try:
        with open_image(pair.picture) as image:
            return ReadPair(pair, preprocess(image))
    except Exception as error:  # a broken file raises anything
        return ReadPair(pair, None, unreadable(error))


NO_CAPTION, NO_PICTURE = "no caption", "no picture"  # what was never a pair, and is not unreadable
NUM_LOOKED_FOR = 256  # pictures, before anything is loaded


class Part(NamedTuple):
    """One of several parts of the data."""

    number: int  # from 1 on
    of: int

    def holds(self, place: int) -> bool:
        """Returns whether the pair or shard of this place in the data belongs to the part."""
        return place % self.of == self.number - 1


WHOLE = Part(1, 1)


class AuditedFiles:
    """The rows of a table, or the pictures of a folder with captions beside them."""

    def __init__(self, given: str, columns: Columns):
        self.given, self.keys, self.is_table = given, Keys(columns), is_table(given)
        self.columns = columns
        if self.is_table:
            self.num_pairs = read_table(given, columns, Config(), "DATA").num_rows
        else:
            self.num_pairs = sum(1 for _ in self._pairs())
        first = list(itertools.islice(self.pairs(WHOLE), NUM_LOOKED_FOR))
        if not first:
            shards = [] if self.is_table else sorted(str(path) for path in Path(given).glob("*.tar"))
            if shards:
                raise InputError(f"DATA: {given} is a folder of shards; expected '{contract(shards)}', in quotes")
            raise InputError(
                f"DATA: {given} holds no pair: expected pictures with a .txt or .json of the same name beside them"
            )
        if not any(is_remote(pair.picture) or os.path.exists(pair.picture) for pair in first):
            raise InputError(
                f"DATA: none of the first {len(first):,} pictures of {given} is there, such as {first[0].picture}: "
                f"paths are from {os.getcwd()}, where this runs"
            )

    def digest(self) -> str:
        """Returns what tells the data from other data: of a table its text, of files their names, sizes and times."""
        digest = hashlib.sha256()
        if self.is_table:
            digest.update(content_digest(Path(self.given)).encode())
            for pair in self._pairs():
                digest.update(_state(pair.picture).encode())
            return digest.hexdigest()
        for place, folders, files in os.walk(self.given):
            folders.sort()
            for name in sorted(files):
                path = os.path.join(place, name)
                digest.update(f"{os.path.relpath(path, self.given)} {_state(path)}".encode("utf-8", "replace"))
        return digest.hexdigest()

    def check_part(self, part: Part) -> None:
        """Raises InputError where a part would hold nothing."""
        if part.of > self.num_pairs:
            raise InputError(
                f"{self.given} holds {self.num_pairs:,} pairs; expected no more parts (--part, processes of torchrun) "
                f"than pairs, and these are {part.of:,}"
            )

    def num_of(self, part: Part) -> int | None:
        """Returns the pairs of a part, None where nothing tells."""
        return len(range(part.number - 1, self.num_pairs, part.of))

    def pairs(self, part: Part, after: tuple[int, int] = (0, -1)) -> Iterator[AuditedPair]:
        """Yields the pairs of a part, those alone that come after a place."""
        for row, pair in enumerate(self._pairs()):
            if row > after[1] and part.holds(row):
                problem = NO_PICTURE if not pair.picture else "" if pair.caption else NO_CAPTION
                yield AuditedPair((0, row), pair.where, pair.picture, pair.caption, pair.picture, problem)

    def _pairs(self) -> Iterator[Pair]:
        if self.is_table:
            return pairs_of_table(self.given, self.keys, "DATA")
        return pairs_of_folder(Path(self.given), self.keys)


class AuditedShards:
    """The samples of WebDataset shards; a part is some of the shards."""

    def __init__(self, given: str):
        self.given, self.shards = given, expand(given, "DATA")
        refuse_other_patterns(self.shards[0], "DATA")
        if not any(is_remote(shard) or os.path.exists(shard) for shard in self.shards):
            raise InputError(f"DATA: there is no file {self.shards[0]}")

    def digest(self) -> str:
        """Returns what tells the data from other data: names, sizes and times of the shards."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(f"{shard} {_state(shard)}".encode("utf-8", "replace"))
        return digest.hexdigest()

    def check_part(self, part: Part) -> None:
        """Raises InputError where a part would hold nothing."""
        if part.of > len(self.shards):
            raise InputError(
                f"{self.given}: a part is some of the shards, and there are {len(self.shards):,}; expected no more "
                f"parts (--part, processes of torchrun) than shards, and these are {part.of:,}"
            )

    def shards_of(self, part: Part) -> list[tuple[int, str]]:
        """Returns the shards of a part with their places."""
        return [(place, shard) for place, shard in enumerate(self.shards) if part.holds(place)]

    def num_of(self, part: Part) -> int | None:
        """Returns the pairs of a part, None where nothing tells."""
        shards = [shard for _, shard in self.shards_of(part)]
        listed = listed_samples(shards)
        return sum(listed.values()) if len(listed) == len(shards) else None

    def likely_num(self, part: Part, num_pairs: int, place: tuple[int, int]) -> int | None:
        """Returns how many pairs a part may hold, as full as its first shards: `num_pairs` up to a place.

        None before the first shard's end.
        """
        num_shards = place[0] // part.of
        return round(num_pairs / num_shards * len(self.shards_of(part))) if num_shards else None

    def pairs(self, part: Part, after: tuple[int, int] = (0, -1)) -> Iterator[AuditedPair]:
        """Yields the pairs of a part, those alone that come after a place."""
        for place, shard in self.shards_of(part):
            if place < after[0]:
                continue
            for pair in _of_shard(place, shard):
                if pair.place > tuple(after):
                    yield pair


def open_data(given: str, columns: Columns) -> AuditedFiles | AuditedShards:
    """Returns the data that DATA names; InputError for what is none, before anything is loaded."""
    if is_table(given) or (os.path.isdir(given) and not _is_data_set(given)):
        return AuditedFiles(given, columns)
    names = expand(given, "DATA")
    if names[0].endswith(".tar") or is_remote(names[0]):
        return AuditedShards(given)
    there = "" if os.path.exists(given) else ": there is no such file or folder"
    raise InputError(
        f"DATA is {given}{there}; expected a table (.csv, .tsv), a folder of pictures with a .txt beside each, or "
        "shards (.tar); superclip shards makes shards of COCO's JSON and of Hugging Face data sets"
    )


def _state(path: str) -> str:
    """Returns the size and the time of a file; None where there is none, as behind a URL."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return "None\n"
    return f"{state.st_size} {state.st_mtime_ns}\n"


def _is_data_set(folder: str) -> bool:
    return any(os.path.exists(os.path.join(folder, name)) for name in ("dataset_info.json", "dataset_dict.json"))


def _of_shard(place: int, shard: str) -> Iterator[AuditedPair]:
    """Yields the samples of a shard and, where it cannot be read, one that says why in the place of what is lost."""
    number = -1
    try:
        for number, sample in enumerate(read_members(shard, {"txt", "json", *IMAGES})):
            caption = sample.get("txt", b"").decode("utf-8", "replace").strip()
            picture = next((sample[image] for image in IMAGES if image in sample), b"")
            problem = NO_PICTURE if not picture else "" if caption else NO_CAPTION
            pair = AuditedPair((place, number), shard, sample["__key__"], caption, picture, problem)
            yield pair._replace(uid=_uid(sample.get("json", b"")))
    except BROKEN as error:
        yield AuditedPair((place, number + 1), shard, "", "", b"", why_broken(error))


def numbered_members(tar: tarfile.TarFile) -> Iterator[tuple[int, str, tarfile.TarInfo]]:
    """Yields the members of a shard with their samples' numbers and their extensions, as OpenCLIP groups them.

    They end where the rest of the shard cannot be read, which was told.
    """
    number, key, extensions = -1, None, set()
    members = iter(tar)
    while True:
        try:
            member = next(members)
        except (StopIteration, tarfile.TarError, EOFError):
            return
        tar.members.clear()  # tarfile keeps every header it has read
        prefix, extension = base_plus_ext(member.name)
        if not member.isfile() or prefix is None:
            continue
        if prefix != key or extension.lower() in extensions:
            number, key, extensions = number + 1, prefix, set()
        extensions.add(extension.lower())
        yield number, extension.lower(), member


def _uid(content: bytes) -> str:
    if b'"uid"' not in content:
        return ""
    try:
        uid = json.loads(content).get("uid", "")
    except (ValueError, AttributeError):
        return ""
    return uid if isinstance(uid, str) and len(uid) == 32 and set(uid) <= set("0123456789abcdef") else ""
