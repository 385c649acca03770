"""The file of an audit's scores: a record per pair, and what the scores of all pairs say."""

import json
import math
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas

from ..errors import InputError
from .pair_scores import PairScore
from .reading import AuditedPair

SCORES = ("clip_score", "class_loss", "support")


def record_of(pair: AuditedPair, score: PairScore | None) -> dict:
    """Returns the record of a pair; without a score if it has a problem."""
    record = {"place": pair.place, "where": pair.where, "key": pair.key, "caption": pair.caption}
    if score is None:
        return record | {"problem": pair.problem}
    for name in SCORES:
        value = getattr(score, name)
        if not math.isnan(value):
            record[name] = round(value, 6)
    for name in ("words", "offered"):
        words = [
            {
                "word": word.word,
                "share": float(f"{word.share:.4g}"),
                "expected": float(f"{word.expected:.4g}"),
                "support": round(word.support, 4),
            }
            for word in getattr(score, name)
        ]
        if words:
            record[name] = words
    return record


def read_scores(file: Path) -> Iterator[dict]:
    """Yields the records of a finished file."""
    with open(file, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except ValueError:
                raise InputError(
                    f"--out: line {number:,} of {file} is damaged: remove the file, and the "
                    "same command scores again"
                ) from None


class ScoredPairs:
    """The scores in a finished file, float32 [N] each by name; NaN for pairs without a score.

    The pairs are sorted by `by`, one of SORTED_BY: `ranked` are the numbers of the pairs with a
    score, the best first, of equal ones the earlier first. "both" is the mean of the ranks by
    support and by CLIP score; for pairs without support, the latter alone.

    `warning` is a sentence if the median support is negative, which shows a head without knowledge
    of the captions. `suggestion` is one that suggests a --keep otherwise: the fraction of pairs
    with support of at least 0, unless it is extreme.
    """

    def __init__(self, file: Path, by: str):
        self.file = file
        self.by = by
        scores = {name: array("f") for name in SCORES}
        # pairs by word and by problem
        self.counts = Counter()
        self.doubted = Counter()
        self.problems = Counter()
        for record in read_scores(file):
            for name, values in scores.items():
                values.append(record.get(name, np.nan))
            for word in record.get("words", []):
                self.counts[word["word"]] += 1
                self.doubted[word["word"]] += word["support"] < 0
            if "problem" in record:
                self.problems[record["problem"].partition(" (")[0]] += 1
        self.scores = {name: np.frombuffer(values, np.float32) for name, values in scores.items()}
        if by == "both":
            goodness = mean_of_ranks([self.scores["support"], self.scores["clip_score"]])
        else:
            goodness = self.scores[by.replace("-", "_")]
        if by == "class-loss":
            goodness = -goodness
        num_ranked = np.isfinite(goodness).sum()
        self.ranked = np.argsort(-goodness, kind="stable")[:num_ranked]  # NaN comes last
        self.warning = ""
        self.suggestion = ""
        support = self.finite("support")
        doubtful = (support < 0).mean() if len(support) else 0.0
        if doubtful and np.median(support) < 0:
            self.warning = (
                f"The median support is {np.median(support):.2f}: the class head predicts these "
                "captions worse than the frequencies of their words do. Train it longer, or check "
                "that the images belong to the captions. Its suggestions are left out"
            )
        elif doubtful > 0.005:
            self.suggestion = (
                f"{doubtful:.1%} of the pairs have support below 0: --keep {1 - doubtful:.2f} "
                "is a starting point"
            )

    def finite(self, name: str) -> np.ndarray:
        """Returns the finite scores of that name."""
        return self.scores[name][np.isfinite(self.scores[name])]


def mean_of_ranks(scores: list[np.ndarray]) -> np.ndarray:
    """Returns the mean rank of each pair over several scores [N], float64 [N].

    Ranks are fractions, 1 for the highest score. Missing scores (NaN) are ignored; the mean is NaN
    if all are missing.
    """
    return pandas.DataFrame(scores).T.rank(pct=True).mean(axis=1).to_numpy()
