"""Reads the scores of an audit, and ranks its pairs and the words of its captions."""

import json
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas

from ..errors import InputError

SCORES = ("class_loss", "support", "clip_score")
Z = 1.96  # 95 % confidence interval
# Words that images do not show, so their support is not informative.
FUNCTION_WORDS = frozenset(
    """a an the this that these those and or but nor of in on at by for from to into onto over under up down with
    without as is are was were be been being it its he she his her they their them we our you your i my me him us who
    which what there here not no so than then very just also s t""".split()  # noqa: SIM905
)


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


class ScoredPairs:
    """The scores in a finished file, float32 [N] each by name; NaN for pairs without a score."""

    def __init__(self, file: Path):
        found = {name: array("f") for name in SCORES}
        self.words, self.problems = WordTable(), Counter()  # the latter: number of pairs by problem
        for record in read_scores(file):
            for name, values in found.items():
                value = record.get(name)
                values.append(np.nan if value is None else value)
            self.words.add((word["word"], word["support"]) for word in record.get("words", []))
            if "problem" in record:
                self.problems[record["problem"].partition(" (")[0]] += 1
        self.scores = {name: np.frombuffer(values, dtype=np.float32) for name, values in found.items()}

    def finite(self, name: str) -> np.ndarray:
        """Returns the finite scores of that name."""
        return self.scores[name][np.isfinite(self.scores[name])]

    @property
    def suggestion(self) -> str:
        """A sentence that suggests a --keep: the fraction of pairs with support of at least 0; "" if it is extreme."""
        support = self.finite("support")
        doubtful = float((support < 0).mean()) if len(support) else 0.0
        if not 0.005 < doubtful < 0.9:
            return ""
        return f"{doubtful:.1%} of the pairs have support below 0: --keep {1 - doubtful:.2f} is a starting point"

    def goodness(self, by: str) -> np.ndarray:
        """Returns the values that sort the pairs, float64 [N], higher for better pairs; −∞ for pairs without a score.

        "both" is the mean of the ranks by support and by CLIP score; for pairs without support, the latter alone.
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
