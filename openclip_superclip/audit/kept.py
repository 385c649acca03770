"""Selects the best pairs and writes them: a table, or shards with the same names."""

import contextlib
import itertools
import os
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas

from ..data.tables import ROWS_AT_ONCE
from ..data.tar_shards import contract, numbered_members
from ..files import whole_file, whole_output, write_json
from .reading import AuditedData


def select(goodness: np.ndarray, fraction: float) -> np.ndarray:
    """Returns a mask of the pairs to keep, bool [N]: the best `fraction` of the scored pairs, and at least one.

    Ties are resolved in favour of earlier pairs.
    """
    num_scored = int(np.isfinite(goodness).sum())
    kept = np.zeros(len(goodness), dtype=bool)
    kept[np.argsort(-goodness, kind="stable")[: max(1, round(fraction * num_scored))]] = True
    return kept


def write_kept(out: Path, data: AuditedData, kept: np.ndarray, places: Iterable[Sequence[int]]) -> str:
    """Writes the kept pairs to `out`, replacing those of an earlier call, and returns the table or pattern of shards.

    `kept` is bool [N], and `places` are (shard, sample) of each kept pair.
    """
    if data.columns is None:
        return _write_shards(out / "kept", data, places)
    table, separator = out / f"kept{Path(data.given).suffix}", data.columns.separator  # of the copy, too
    as_text = {"sep": separator, "dtype": str, "keep_default_na": False, "chunksize": ROWS_AT_ONCE}
    with whole_file(table) as file, pandas.read_csv(data.given, **as_text) as chunks:
        for number, rows in enumerate(chunks):
            chosen = rows[kept[number * ROWS_AT_ONCE :][: len(rows)]]
            text = chosen.to_csv(sep=separator if len(separator) == 1 else "\t", index=False, header=number == 0)
            file.write(text.encode("utf-8", "replace"))
    return f"{table}, separated by tabs" if len(separator) > 1 else str(table)


def _write_shards(out: Path, data: AuditedData, places: Iterable[Sequence[int]]) -> str:
    """Copies the kept samples unchanged into shards of the same names, and returns their brace pattern."""
    sizes: dict[str, int] = {}
    names = list(map(os.path.basename, data.files))
    if len(set(names)) < len(names):
        names = [f"{number:06}.tar" for number in range(len(names))]
    with whole_output(out, overwrite=True) as folder:
        folder.mkdir()
        for index, group in itertools.groupby(places, lambda place: place[0]):
            numbers, name = {number for _, number in group}, names[index]
            with (
                tarfile.open(data.files[index]) as source,
                tarfile.open(folder / name, "w", format=tarfile.GNU_FORMAT) as target,
                contextlib.suppress(EOFError, tarfile.TarError),  # damage after the last kept sample
            ):
                for number, _, _, member in numbered_members(source):
                    if number in numbers:
                        target.addfile(member, source.extractfile(member))
                        target.members.clear()
            sizes[name] = len(numbers)
        write_json(folder / "sizes.json", sizes)
    return contract([str(out / name) for name in sizes])
