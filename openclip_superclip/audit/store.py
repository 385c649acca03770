"""Stores the scores of an audit as JSON Lines, in the order of the data, so that an interrupted call can resume."""

import contextlib
import fcntl
import heapq
import itertools
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

from ..errors import InputError
from ..files import whole_file
from .pairs import NO_CAPTION, NO_IMAGE

SCORES = ("class_loss", "support", "clip_score")
Z = 1.96  # 95 % confidence interval
# Words that images do not show, so their support is not informative.
FUNCTION_WORDS = frozenset(
    """a an the this that these those and or but nor of in on at by for from to into onto over under up down with
    without as is are was were be been being it its he she his her they their them we our you your i my me him us who
    which what there here not no so than then very just also s t""".split()  # noqa: SIM905
)


class UnfinishedScores:
    """Writes FILE.part batch by batch, and renames it to FILE when it is complete.

    Keeps the lines of an interrupted call up to its last complete batch, so that the batches, and therefore the scores,
    are the same as without the interruption. Raises InputError if another process is writing the file.

    Args:
        file: the finished file.
        batch_size: lines per batch; the last batch may be smaller.

    Attributes:
        last: place of the last pair written; (0, -1) if there is none.
        num_lines: number of lines written.
    """

    def __init__(self, file: Path, batch_size: int):
        self.file, self.part = file, file.with_name(f"{file.name}.part")
        self.opened = open(self.part, "r+b" if self.part.exists() else "w+b")  # noqa: SIM115
        try:
            fcntl.flock(self.opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"--out: another call is writing {self.part}: wait until it ends") from None
        except OSError:  # a file system without locks
            pass
        self.last, self.num_lines, end = (0, -1), 0, 0
        lines = itertools.takewhile(_place, self.opened)
        while len(batch := list(itertools.islice(lines, batch_size))) == batch_size:
            self.last, self.num_lines, end = _place(batch[-1]), self.num_lines + batch_size, end + sum(map(len, batch))
        self.opened.seek(end)
        self.opened.truncate()

    def add(self, records: Sequence[dict]) -> None:
        lines = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
        self.opened.write(lines.encode("utf-8", "replace"))
        self.opened.flush()
        self.num_lines += len(records)

    def finish(self) -> None:
        """Renames FILE.part to FILE."""
        os.fsync(self.opened.fileno())
        os.replace(self.part, self.file)

    def close(self) -> None:
        """Closes the file and releases its lock."""
        self.opened.close()


def _place(line: bytes) -> tuple[int, int] | None:
    """Returns the place of a line's pair, or None if the line is incomplete or damaged."""
    try:
        return tuple(json.loads(line)["place"]) if line.endswith(b"\n") else None
    except (ValueError, TypeError, KeyError):
        return None


def read_scores(file: Path) -> Iterator[dict]:
    """Yields the records of a finished file."""
    with open(file, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except ValueError:
                raise InputError(
                    f"--out: line {number:,} of {file} is damaged: remove the file, and the same command scores again"
                ) from None


def merge_scores(parts: Sequence[Path], out: Path) -> None:
    """Merges the parts into one file, in the order of the data, and removes them."""
    with contextlib.ExitStack() as stack, whole_file(out) as file:
        opened = [stack.enter_context(open(part, "rb")) for part in parts]
        file.writelines(heapq.merge(*opened, key=_place))
    for part in parts:
        part.unlink()


class ScoredPairs:
    """The scores of a finished file. Uses twelve bytes of memory per pair.

    Attributes:
        scores: the scores by name, float32 [N] each; NaN for pairs without a score.
        words: counts of the captions' words, and of how often they are doubtful.
        problems: number of pairs by problem.
        num_unreadable: number of pairs with an unreadable image.
        num_unreadable_shards: number of shards that cannot be read completely.

    Args:
        of_shards: whether the pairs are samples of shards.
    """

    def __init__(self, file: Path, of_shards: bool):
        found = {name: array("f") for name in SCORES}
        self.words, self.problems = WordTable(), Counter()
        self.num_unreadable = self.num_unreadable_shards = 0
        for record in read_scores(file):
            for name, values in found.items():
                value = record.get(name)
                values.append(np.nan if value is None else value)
            self.words.add((word["word"], word["support"]) for word in record.get("words", []))
            if "problem" in record:
                self.problems[record["problem"].partition(" (")[0]] += 1
                is_shard = of_shards and record["key"] == ""
                self.num_unreadable_shards += is_shard
                self.num_unreadable += not is_shard and record["problem"] not in (NO_CAPTION, NO_IMAGE)
        self.scores = {name: np.frombuffer(values, dtype=np.float32) for name, values in found.items()}

    def __len__(self) -> int:
        return len(self.scores["clip_score"])

    def finite(self, name: str) -> np.ndarray:
        """Returns the finite scores of that name."""
        return self.scores[name][np.isfinite(self.scores[name])]

    @property
    def has_head(self) -> bool:
        """Whether the model had a class head."""
        return len(self.finite("class_loss")) > 0

    @property
    def doubtful(self) -> float | None:
        """The fraction of pairs with negative support, among those with support; None if there are none."""
        support = self.finite("support")
        return float((support < 0).mean()) if len(support) else None

    @property
    def suggested_keep(self) -> float | None:
        """A starting point for --keep: the fraction of pairs with support of at least 0. None if it is extreme."""
        return 1 - self.doubtful if self.doubtful and 0.005 < self.doubtful < 0.9 else None

    def goodness(self, by: str) -> np.ndarray:
        """Returns the values that sort the pairs, float64 [N], higher for better pairs; −∞ for pairs without a score.

        Args:
            by: one of SORTED_BY; "both" is the mean of the ranks by support and by CLIP score. For pairs without
                support, it is the rank by CLIP score.
        """
        if by == "both":
            values = mean_of_ranks([self.scores["support"], self.scores["clip_score"]])
        else:
            values = self.scores[by.replace("-", "_")].astype(np.float64) * (-1 if by == "class-loss" else 1)
        return np.where(np.isnan(values), -np.inf, values)


def mean_of_ranks(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the mean rank of each pair over several scores [N], float64 [N].

    Ranks are fractions, 1 for the highest score. Missing scores (NaN) are ignored; the mean is NaN if all are missing.
    """
    return pandas.DataFrame(list(scores)).T.rank(pct=True).mean(axis=1).to_numpy()


class WordRow(NamedTuple):
    """A word of the audited captions."""

    word: str
    num_captions: int  # captions that contain the word
    num_doubted: int  # captions in which its support is negative

    @property
    def fraction(self) -> float:
        return self.num_doubted / self.num_captions

    @property
    def at_least(self) -> float:
        """The lower bound of the fraction's 95 % Wilson interval, which is small for words in few captions."""
        n, p = self.num_captions, self.fraction
        centre, half = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
        return (centre - half) / (1 + Z**2 / n)


class WordTable:
    """Counts how often each word occurs and how often it is doubtful."""

    def __init__(self):
        self.counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def add(self, words: Iterable[tuple[str, float]]) -> None:
        """Adds the words of a caption, each with its support. Function words are ignored."""
        for word, support in words:
            if word not in FUNCTION_WORDS:
                counts = self.counts[word]
                counts[0] += 1
                counts[1] += support < 0

    def rows(self) -> list[WordRow]:
        """Returns the words, sorted by the lower bound of the fraction of captions in which they are doubtful."""
        rows = [WordRow(word, *counts) for word, counts in self.counts.items()]
        return sorted(rows, key=lambda row: (-row.at_least, -row.num_captions, row.word))
