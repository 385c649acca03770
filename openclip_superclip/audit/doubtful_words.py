"""Counts in how many captions each word is doubtful."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from ..evaluation.intervals import Estimate, wilson

# Words that images do not show, so their support is not informative.
FUNCTION_WORDS = frozenset(
    """a an the this that these those and or but nor of in on at by for from to into onto over under up down with
    without as is are was were be been being it its he she his her they their them we our you your i my me him us who
    which what there here not no so than then very just also s t""".split()  # noqa: SIM905
)


class WordRow(NamedTuple):
    """A word of the audited captions."""

    word: str
    num_captions: int  # captions that contain the word
    num_doubted: int  # captions in which its support is negative
    fraction: Estimate  # of the captions; its lower bound is small for words in few captions


class WordTable:
    """Counts how often each word occurs and how often it is doubtful."""

    def __init__(self):
        self.counts, self.doubted = Counter(), Counter()

    def add(self, words: Iterable[tuple[str, float]]) -> None:
        """Adds the words of a caption, each with its support. Function words are ignored."""
        for word, support in words:
            if word not in FUNCTION_WORDS:
                self.counts[word] += 1
                self.doubted[word] += support < 0

    def rows(self) -> list[WordRow]:
        """Returns the words, sorted by the lower bound of the fraction of captions in which they are doubtful."""
        rows = [
            WordRow(word, count, self.doubted[word], wilson(self.doubted[word] / count, count))
            for word, count in self.counts.items()
        ]
        return sorted(rows, key=lambda row: (-row.fraction.low, -row.num_captions, row.word))
