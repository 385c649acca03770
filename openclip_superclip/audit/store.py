"""The file of scores, a line of JSON a pair in the order of the data, which a call that was stopped goes on with."""

import contextlib
import hashlib
import heapq
import json
import math
import os
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas
from filelock import FileLock, Timeout

from ..errors import InputError
from ..files import whole_file
from .pairs import NO_CAPTION, NO_PICTURE
from .scorer import normalised


class UnfinishedScores:
    """Writes FILE.part batch by batch, and gives it FILE's name once all are there.

    What an earlier call has left there is kept up to its last whole batch, so that the same pairs meet in a batch and
    get the same scores as if it had never stopped; a line that was cut goes.

    Args:
        file: takes its name at the end.
        batch_size: lines of a batch, all but the last of the file.

    Attributes:
        last: the place of the last pair that is there; (0, -1) where none is.
        num_lines: that are there.
    """

    def __init__(self, file: Path, batch_size: int):
        self.file, self.part = file, file.with_name(f"{file.name}.part")
        self.lock = FileLock(f"{file}.lock")
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"--out: another call writes {self.part} now: let it end, or give another --out") from None
        except (OSError, NotImplementedError):  # a file system without locks
            pass
        try:
            self.num_lines, end, self.last = _whole_batches(self.part, batch_size)
            self.opened = open(self.part, "r+b" if self.part.exists() else "w+b")  # noqa: SIM115
            self.opened.truncate(end)
            self.opened.seek(end)
        except OSError as error:
            raise _cannot_write(self.part, error) from error

    def add(self, records: Sequence[dict]) -> None:
        """Writes a batch; InputError where the disk does not take it."""
        lines = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
        try:
            self.opened.write(lines.encode("utf-8", "replace"))
            self.opened.flush()
        except OSError as error:
            raise _cannot_write(self.part, error) from error
        self.num_lines += len(records)

    def finish(self) -> None:
        """Gives the file its name."""
        try:
            os.fsync(self.opened.fileno())
            os.replace(self.part, self.file)
        except OSError as error:
            raise _cannot_write(self.part, error) from error

    def close(self) -> None:
        """Lets go of the file, finished or not."""
        with contextlib.suppress(OSError):  # what could not be written was told
            self.opened.close()
        self.lock.release()
        Path(self.lock.lock_file).unlink(missing_ok=True)


def read_scores(file: Path) -> Iterator[dict]:
    """Yields the records of a finished file."""
    with open(file, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except ValueError:
                raise InputError(
                    f"--out: line {number:,} of {file} is damaged: remove the file, and the same command scores anew"
                ) from None


def merge_scores(parts: Sequence[Path], out: Path) -> None:
    """Writes one file of the parts' lines in the order of the data, and removes the parts."""
    opened = [open(part, "rb") for part in parts]  # noqa: SIM115
    try:
        with whole_file(out) as file:
            for line in heapq.merge(*opened, key=_place):
                file.write(line)
    except OSError as error:
        raise _cannot_write(out, error) from error
    finally:
        for part in opened:
            part.close()
    for part in parts:
        part.unlink()


def _whole_batches(file: Path, batch_size: int) -> tuple[int, int, tuple[int, int]]:
    """Returns how many lines of whole batches a file holds, the byte where they end, and the last one's place."""
    kept = 0, 0, (0, -1)
    if not file.exists():
        return kept
    with open(file, "rb") as lines:
        end = 0
        for number, line in enumerate(lines, 1):
            if not _is_whole(line):
                break
            end += len(line)
            if number % batch_size == 0:
                kept = number, end, _place(line)
    return kept


def _is_whole(line: bytes) -> bool:
    """Returns whether a line is one that was written, neither cut nor damaged."""
    try:
        return line.startswith(b'{"place"') and line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _place(line: bytes) -> tuple[int, int]:
    shard, number = json.loads(line)["place"]
    return shard, number


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(
        f"--out: {path} cannot be written ({error.strerror or error}): the same command goes on from there"
    )


SCORES = ("class_loss", "support", "clip_score")
NO_DIGEST = 0  # of a caption that is none


class ScoredPairs:
    """Reads a finished file of scores, once; it holds twenty bytes a pair.

    Attributes:
        scores: by name, float32 [N] each, NaN where a pair has none.
        captions: uint64 [N], a digest of each caption's words; equal where they are, in whatever order.
        words: the words and the doubts.
        problems: how many pairs have which.
        num_unreadable, num_unreadable_shards: pairs whose picture cannot be read, and shards.

    Args:
        of_shards: whether the pairs are samples of shards.
    """

    def __init__(self, file: Path, of_shards: bool):
        found = {name: array("f") for name in SCORES}
        digests, self.words, self.problems = array("Q"), WordTable(), Counter()
        self.num_unreadable = self.num_unreadable_shards = 0
        for record in read_scores(file):
            for name, values in found.items():
                value = record.get(name)
                values.append(np.nan if value is None else value)
            digests.append(_digest(record["caption"]))
            self.words.add((word["word"], word["support"]) for word in record.get("words", []))
            if "problem" in record:
                self._count(record, of_shards)
        self.scores = {name: np.frombuffer(values, dtype=np.float32) for name, values in found.items()}
        self.captions = np.frombuffer(digests, dtype=np.uint64)

    def _count(self, record: dict, of_shards: bool) -> None:
        self.problems[record["problem"].partition(" (")[0]] += 1
        if of_shards and record["key"] == "":
            self.num_unreadable_shards += 1
        elif record["problem"] not in (NO_CAPTION, NO_PICTURE):
            self.num_unreadable += 1

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def has_head(self) -> bool:
        """Whether the model had a class head."""
        return bool(np.isfinite(self.scores["class_loss"]).any())

    def goodness(self, by: str) -> np.ndarray:
        """Returns a number a pair, float64 [N], the higher the better; −∞ where the pair has no such score.

        Args:
            by: one of SORTED_BY; "both" is the mean of the ranks by support and by CLIP score, and the latter's rank
                alone where a caption holds no word that the head has learned.
        """
        if by == "both":
            found = mean_of_ranks([self.scores["support"], self.scores["clip_score"]])
            return np.where(np.isnan(found), -np.inf, found)
        values = self.scores[by.replace("-", "_")].astype(np.float64)
        values = -values if by == "class-loss" else values
        return np.where(np.isnan(values), -np.inf, values)

    def repeated(self, most: int) -> dict[int, int]:
        """Returns the digests of the captions that several pairs have, with their numbers, the most frequent first."""
        digests, numbers = np.unique(self.captions[self.captions != NO_DIGEST], return_counts=True)
        several = np.flatnonzero(numbers > 1)
        order = several[np.argsort(-numbers[several], kind="stable")][:most]
        return dict(zip(digests[order].tolist(), numbers[order].tolist(), strict=True))

    def num_repeating(self) -> int:
        """Returns how many pairs have the words of an earlier pair's caption."""
        there = self.captions[self.captions != NO_DIGEST]
        return len(there) - len(np.unique(there))


def mean_of_ranks(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the mean of the ranks that several scores [N] give, float64 [N]: they need no common unit.

    Ranks are shares, 1 for the highest. A score that a pair lacks (NaN) does not count; NaN where it lacks all.
    """
    return pandas.DataFrame(list(scores)).T.rank(pct=True).mean(axis=1).to_numpy()


def _digest(caption: str) -> int:
    (words,) = normalised([caption])
    if not words:
        return NO_DIGEST
    return int.from_bytes(hashlib.blake2b(words.encode("utf-8", "replace"), digest_size=8).digest(), "big") or 1


def caption_digest(record: dict) -> int:
    """Returns the digest of a record's caption, as `ScoredPairs.captions` holds it."""
    return _digest(record["caption"])


Z = 1.96  # of the 95 % interval
# Words that no image shows: low support of one says nothing of the pair.
FUNCTION_WORDS = frozenset(
    """a an the this that these those and or but nor of in on at by for from to into onto over under up down with
    without as is are was were be been being it its he she his her they their them we our you your i my me him us who
    which what there here not no so than then very just also s t""".split()  # noqa: SIM905
)


class WordRow(NamedTuple):
    """A word of the audited captions."""

    word: str
    num_captions: int  # that hold it
    num_doubted: int  # of them: its support is below 0

    @property
    def share(self) -> float:
        return self.num_doubted / self.num_captions

    @property
    def at_least(self) -> float:
        """The lower end of the share's 95 % interval (Wilson's): a word that occurs once proves little."""
        n, p = self.num_captions, self.share
        centre, half = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
        return (centre - half) / (1 + Z**2 / n)


class WordTable:
    """Counts words and doubts; it grows with the different words, not with the pairs."""

    def __init__(self):
        self.counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def add(self, words: Iterable[tuple[str, float]]) -> None:
        """Adds the words of a caption, each with its support; function words do not count."""
        for word, support in words:
            if word in FUNCTION_WORDS:
                continue
            counts = self.counts[word]
            counts[0] += 1
            counts[1] += support < 0

    def rows(self) -> list[WordRow]:
        """Returns the words, those first whose share of doubts is the highest with some certainty."""
        rows = [WordRow(word, *counts) for word, counts in self.counts.items()]
        return sorted(rows, key=lambda row: (-row.at_least, -row.num_captions, row.word))
