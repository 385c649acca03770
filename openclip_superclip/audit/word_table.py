"""Which words are most often doubted, relative to how often they occur."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

Z = 1.96  # of the 95 % interval


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
        """Adds the words of a caption, each with its support."""
        for word, support in words:
            counts = self.counts[word]
            counts[0] += 1
            counts[1] += support < 0

    def rows(self) -> list[WordRow]:
        """Returns the words, those first whose share of doubts is the highest with some certainty."""
        rows = [WordRow(word, *counts) for word, counts in self.counts.items()]
        return sorted(rows, key=lambda row: (-row.at_least, -row.num_captions, row.word))
