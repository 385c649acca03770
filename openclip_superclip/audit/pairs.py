"""The audited data, pair by pair and always in the same order: a table, a folder or shards."""

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
NO_CAPTION, NO_IMAGE = "no caption", "no image"  # never were pairs, and do not count as unreadable
NUM_LOOKED_FOR = 256  # images, before anything is loaded


class AuditedPair(NamedTuple):
    """A pair of the data, or the problem in its place."""

    place: tuple[int, int]  # shard and sample, or 0 and row: the order of the data
    where: str  # the shard, the row or the file
    key: str  # the sample's key, or the image's path
    caption: str
    image: str | bytes  # its path or content
    problem: str = ""
    uid: str = ""  # DataComp's, if the sample has one


class ReadPair(NamedTuple):
    """A pair with its preprocessed image, or the problem."""

    pair: AuditedPair
    image: Tensor | None  # [3, H, W]
    problem: str = ""


def read_in_batches(
    pairs: Iterator[AuditedPair], preprocess: Callable, batch_size: int, threads: int
) -> Iterator[list[ReadPair]]:
    """Yields the pairs in order, in full batches except for the last."""
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
    if isinstance(pair.image, str) and is_remote(pair.image):
        return ReadPair(pair, None, "a URL: images of a table are read from files")
    try:
        with open_image(pair.image) as image:
            return ReadPair(pair, preprocess(image))
    except Exception as error:  # a damaged file raises anything
        return ReadPair(pair, None, unreadable(error))


class Part(NamedTuple):
    """One of several parts of the data."""

    number: int  # from 1
    of: int

    def holds(self, index: int) -> bool:
        """Returns whether the pair or shard of that index belongs to the part."""
        return index % self.of == self.number - 1


WHOLE = Part(1, 1)


class AuditedFiles:
    """The rows of a table, or the images of a folder with captions beside them."""

    def __init__(self, given: str, columns: Columns):
        self.given, self.keys, self.columns, self.is_table = given, Keys(columns), columns, is_table(given)
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
                f"DATA: {given} holds no pair: expected images with a .txt or .json of the same name beside them"
            )
        if not any(is_remote(pair.image) or os.path.exists(pair.image) for pair in first):
            raise InputError(
                f"DATA: none of the first {len(first):,} images of {given} exists, such as {first[0].image}: paths are "
                f"relative to {os.getcwd()}, the working directory"
            )

    def digest(self) -> str:
        """Returns an identity of the data: the text of a table; names, sizes and times of files."""
        digest = hashlib.sha256()
        if self.is_table:
            digest.update(content_digest(Path(self.given)).encode())
            for pair in self._pairs():
                digest.update(_state(pair.image).encode())
            return digest.hexdigest()
        for folder, folders, files in os.walk(self.given):
            folders.sort()
            for name in sorted(files):
                path = os.path.join(folder, name)
                digest.update(f"{os.path.relpath(path, self.given)} {_state(path)}".encode("utf-8", "replace"))
        return digest.hexdigest()

    def check_part(self, part: Part) -> None:
        """Raises InputError if there are more parts than pairs."""
        if part.of > self.num_pairs:
            raise InputError(
                f"{self.given} holds {self.num_pairs:,} pairs; expected no more parts (--part, processes of torchrun) "
                f"than pairs, found {part.of:,}"
            )

    def num_of(self, part: Part) -> int | None:
        """Returns the number of pairs of a part, None if it is not known."""
        return len(range(part.number - 1, self.num_pairs, part.of))

    def pairs(self, part: Part, after: tuple[int, int] = (0, -1)) -> Iterator[AuditedPair]:
        """Yields the pairs of a part that come after a place."""
        for row, pair in enumerate(self._pairs()):
            if row > after[1] and part.holds(row):
                problem = _problem(pair.image, pair.caption)
                yield AuditedPair((0, row), pair.where, pair.image, pair.caption, pair.image, problem)

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
        """Returns an identity of the data: names, sizes and times of the shards."""
        lines = (f"{shard} {_state(shard)}" for shard in self.shards)
        return hashlib.sha256("".join(lines).encode("utf-8", "replace")).hexdigest()

    def check_part(self, part: Part) -> None:
        """Raises InputError if there are more parts than shards."""
        if part.of > len(self.shards):
            raise InputError(
                f"{self.given}: a part is some of the shards, and there are {len(self.shards):,}; expected no more "
                f"parts (--part, processes of torchrun) than shards, found {part.of:,}"
            )

    def shards_of(self, part: Part) -> list[tuple[int, str]]:
        """Returns the shards of a part with their indices."""
        return [(index, shard) for index, shard in enumerate(self.shards) if part.holds(index)]

    def num_of(self, part: Part) -> int | None:
        """Returns the number of pairs of a part, None if it is not known."""
        shards = [shard for _, shard in self.shards_of(part)]
        listed = listed_samples(shards)
        return sum(listed.values()) if len(listed) == len(shards) else None

    def likely_num(self, part: Part, num_pairs: int, place: tuple[int, int]) -> int | None:
        """Returns an estimate of the number of pairs of a part, from `num_pairs` up to a place.

        None in the first shard.
        """
        num_shards = place[0] // part.of
        return round(num_pairs / num_shards * len(self.shards_of(part))) if num_shards else None

    def pairs(self, part: Part, after: tuple[int, int] = (0, -1)) -> Iterator[AuditedPair]:
        """Yields the pairs of a part that come after a place, and for a shard that is cut one with the problem."""
        for index, shard in self.shards_of(part):
            if index >= after[0]:
                yield from (pair for pair in _pairs_of_shard(index, shard) if pair.place > tuple(after))


def open_data(given: str, columns: Columns) -> AuditedFiles | AuditedShards:
    """Returns the data that DATA names; InputError for anything else, before anything is loaded."""
    is_data_set = any(os.path.exists(os.path.join(given, f"dataset_{name}.json")) for name in ("info", "dict"))
    if is_table(given) or (os.path.isdir(given) and not is_data_set):
        return AuditedFiles(given, columns)
    names = expand(given, "DATA")
    if names[0].endswith(".tar") or is_remote(names[0]):
        return AuditedShards(given)
    missing = "" if os.path.exists(given) else ": there is no such file or folder"
    raise InputError(
        f"DATA is {given}{missing}; expected a table (.csv, .tsv), a folder of images with a .txt beside each, or "
        "shards (.tar); superclip shards makes shards of COCO's JSON and of Hugging Face data sets"
    )


def _problem(image: str | bytes, caption: str) -> str:
    return NO_IMAGE if not image else "" if caption else NO_CAPTION


def _state(path: str) -> str:
    """Returns the size and the time of a file; None if there is none, as for URLs."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return "None\n"
    return f"{state.st_size} {state.st_mtime_ns}\n"


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
    if b'"uid"' not in content:
        return ""
    try:
        uid = json.loads(content).get("uid", "")
    except (ValueError, AttributeError):
        return ""
    return uid if isinstance(uid, str) and len(uid) == 32 and set(uid) <= set("0123456789abcdef") else ""


def numbered_members(tar: tarfile.TarFile) -> Iterator[tuple[int, str, tarfile.TarInfo]]:
    """Yields the members of a shard with their samples' numbers and their extensions, grouped as OpenCLIP does.

    Stops without an error if the rest of the shard cannot be read.
    """
    number, key, extensions = -1, None, set()
    members = iter(tar)
    while True:
        try:
            member = next(members)
        except (StopIteration, tarfile.TarError, EOFError):
            return
        tar.members.clear()  # tarfile keeps every header that it has read
        prefix, extension = base_plus_ext(member.name)
        if not member.isfile() or prefix is None:
            continue
        if prefix != key or extension.lower() in extensions:
            number, key, extensions = number + 1, prefix, set()
        extensions.add(extension.lower())
        yield number, extension.lower(), member
