"""The words of captions, as they stand there."""

import re
from collections.abc import Iterable

WORD = re.compile(r"[^\W_]+")  # letters and digits: commas, quotes and hyphens stand between words


def words_of(caption: str) -> list[str]:
    """Returns the different words of a caption in small letters, in their order."""
    return list(dict.fromkeys(word.casefold() for word in WORD.findall(caption)))


def normalised(captions: Iterable[str]) -> list[str]:
    """Returns each caption's words by the alphabet: equal for captions that differ by order, case and marks alone."""
    return [" ".join(sorted(word.casefold() for word in WORD.findall(caption))) for caption in captions]
