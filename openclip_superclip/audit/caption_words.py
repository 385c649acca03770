"""The words of captions, as they stand there."""

import re
from collections.abc import Iterable

WORD = re.compile(r"[^\W_]+")  # letters and digits: commas, quotes and hyphens stand between words


def words_of(caption: str) -> list[str]:
    """Returns the different words of a caption in their order, as they stand; capitals make no other word."""
    first: dict[str, str] = {}
    for word in WORD.findall(caption):
        first.setdefault(word.casefold(), word)
    return list(first.values())


def normalised(captions: Iterable[str]) -> list[str]:
    """Returns each caption's words by the alphabet: equal for captions that differ by order, case and marks alone."""
    return [" ".join(sorted(word.casefold() for word in WORD.findall(caption))) for caption in captions]
