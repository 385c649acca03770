"""Brace notation: file names to and from a pattern such as `x/{000..041}.tar`."""

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence

import braceexpand

from ..errors import InputError


def expand(pattern: str, flag: str = "--data") -> list[str]:
    """Returns the names of a pattern or of several joined by `::`; InputError for braces that do not match."""
    try:
        return [name for part in pattern.split("::") for name in braceexpand.braceexpand(part)]
    except ValueError as error:
        raise InputError(
            f"{flag}: {pattern} has unbalanced braces ({' '.join(str(error).split())}); expected such as "
            "'x/{00000..00041}.tar', in quotes"
        ) from None


def refuse_other_patterns(first: str, flag: str = "--data") -> None:
    """Raises InputError where the first file is a folder or holds a *, which OpenCLIP does not look into."""
    if is_remote(first):
        return
    if os.path.isdir(first):
        raise InputError(f"{flag}: {first} is a folder; expected its shards, such as '{first}/{{00000..00099}}.tar'")
    if "*" in first:
        raise InputError(f"{flag}: {first} has a *; expected braces, such as '{{00000..00099}}.tar'")


def is_remote(shard: str) -> bool:
    """Returns whether a shard is a URL or the output of a command, which no look at the file system finds."""
    return "://" in shard or shard.startswith("pipe:")


def contract(names: Sequence[str]) -> str:
    """Returns a pattern of these names in this order; neighbours that differ by a number, counting up, join a brace."""
    return "::".join(prefix + _braces(list(numbers)) + suffix for (prefix, suffix), numbers in _by_frame(names))


def _by_frame(names: Iterable[str]) -> Iterator[tuple[tuple[str, str], Iterator[str]]]:
    """Yields what stands around the last number of the names, and the numbers of neighbours with equal frames."""
    split = (re.fullmatch(r"(.*?)(\d*)(\D*)", name, flags=re.DOTALL).groups() for name in names)
    for frame, group in itertools.groupby(split, key=lambda parts: (parts[0], parts[2])):
        yield frame, (number for _, number, _ in group)


def _braces(numbers: list[str]) -> str:
    runs = []
    for number in numbers:
        last = runs[-1][-1] if runs else ""
        if last and number and len(number) == len(last) and int(number) == int(last) + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    parts = [f"{{{run[0]}..{run[1]}}}" if len(run) == 2 else run[0] for run in runs]
    return parts[0] if len(parts) == 1 else f"{{{','.join(parts)}}}"
