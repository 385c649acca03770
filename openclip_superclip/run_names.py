"""Names by which people tell runs apart: their folders', as short as may be."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def run_names(runs: Sequence[Path]) -> list[str]:
    """Returns each folder's name, with as many of those above it as no other folder among them ends in."""
    parts = [run.resolve().parts for run in runs]
    ends = Counter(one[-length:] for one in set(parts) for length in range(1, len(one) + 1))
    return [str(Path(*next(end for end in _ends(one) if ends[end] == 1 or end == one))) for one in parts]


def _ends(parts: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [parts[-length:] for length in range(1, len(parts) + 1)]
