"""All pairs of a finished audit: their scores as arrays, their words counted, what could not be scored."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas

from .audited_data import NO_CAPTION, NO_PICTURE
from .caption_words import normalised
from .scores_file import read_scores
from .word_table import WordTable

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
