"""Reads the scores of an audit and ranks its pairs."""

import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas

from ..errors import InputError

SCORES = ("class_loss", "support", "clip_score")


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
        self.counts, self.doubted, self.problems = Counter(), Counter(), Counter()  # pairs by word and by problem
        for record in read_scores(file):
            for name, values in found.items():
                value = record.get(name)
                values.append(np.nan if value is None else value)
            for word in record.get("words", []):
                self.counts[word["word"]] += 1
                self.doubted[word["word"]] += word["support"] < 0
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
