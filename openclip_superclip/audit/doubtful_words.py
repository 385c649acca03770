"""Ranks words by how often they are doubtful."""

from collections import Counter
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


def most_doubtful(counts: Counter, doubted: Counter) -> list[WordRow]:
    """Returns the words, except function words, by the lower bound of the fraction of captions that are doubtful.

    `counts` are the numbers of captions with each word, and `doubted` those in which its support is negative.
    """
    rows = [
        WordRow(word, count, doubted[word], wilson(doubted[word] / count, count))
        for word, count in counts.items()
        if word not in FUNCTION_WORDS
    ]
    return sorted(rows, key=lambda row: (-row.fraction.low, -row.num_captions, row.word))
