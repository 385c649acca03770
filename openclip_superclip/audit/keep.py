"""Writes the files of --keep: the keys of the best pairs, and their rows or shards."""

import contextlib
import itertools
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..data.shards import contract
from ..files import whole_file, whole_output, write_json
from ..pages import csv_text
from .pairs import AuditedFiles, AuditedShards, numbered_members
from .store import read_scores

KEYS, TABLE, UIDS, SHARDS = "kept.txt", "kept.csv", "kept.npy", "kept"
ROWS_AT_ONCE = 10_000


def select(goodness: np.ndarray, fraction: float) -> np.ndarray:
    """Returns a mask of the pairs to keep, bool [N]: the best `fraction` of the scored pairs, and at least one.

    Ties are resolved in favour of earlier pairs.
    """
    num_scored = int(np.isfinite(goodness).sum())
    kept = np.zeros(len(goodness), dtype=bool)
    kept[np.argsort(-goodness, kind="stable")[: max(1, round(fraction * num_scored))]] = True
    return kept


def write_kept(
    out: Path, data: AuditedFiles | AuditedShards, scores: Path, kept: np.ndarray, write_shards: bool
) -> list[str]:
    """Writes the files of the kept pairs, replacing those of an earlier call, and returns their names.

    kept.txt contains one key per line, the image path or the sample's key. For a table, kept.csv contains the kept
    rows; for a folder, paths and captions. For shards, kept.npy contains the uids in DataComp's format if every sample
    has one. With `write_shards`, the folder `kept` contains the samples in shards of the same names.
    """
    (out / UIDS).unlink(missing_ok=True)
    if (out / SHARDS).exists():
        shutil.rmtree(out / SHARDS)
    written = [out / KEYS]
    with whole_file(out / KEYS) as file:
        file.writelines(f"{record['key']}\n".encode("utf-8", "replace") for record in _of_kept(scores, kept))
    if isinstance(data, AuditedFiles):
        written.append(out / f"kept{Path(data.given).suffix}" if data.is_table else out / TABLE)
        with whole_file(written[-1]) as file:
            file.writelines(_table(data, scores, kept))
    elif all(uids := [record.get("uid", "") for record in _of_kept(scores, kept)]):
        written.append(out / UIDS)
        halves = [(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids]
        with whole_file(out / UIDS) as file:
            np.save(file, np.sort(np.array(halves, dtype="u8,u8")))
    if write_shards:
        written.append(_write_shards(out / SHARDS, data, scores, kept))
    return list(map(str, written))


def _of_kept(scores: Path, kept: np.ndarray) -> Iterator[dict]:
    return itertools.compress(read_scores(scores), kept)


def _table(data: AuditedFiles, scores: Path, kept: np.ndarray) -> Iterator[bytes]:
    """Yields the kept rows of a table with all columns, or the paths and captions of a folder, as CSV."""
    if not data.is_table:
        rows = ((record["key"], record["caption"]) for record in _of_kept(scores, kept))
        yield csv_text([("image", "caption"), *rows]).encode("utf-8", "replace")
        return
    import pandas

    separator = data.columns.separator
    as_text = {"sep": separator, "dtype": str, "keep_default_na": False, "chunksize": ROWS_AT_ONCE}
    with pandas.read_csv(data.given, **as_text) as chunks:
        for number, rows in enumerate(chunks):
            chosen = rows[kept[number * ROWS_AT_ONCE :][: len(rows)]]
            text = chosen.to_csv(sep=separator if len(separator) == 1 else "\t", index=False, header=number == 0)
            yield text.encode("utf-8", "replace")


def _write_shards(out: Path, data: AuditedShards, scores: Path, kept: np.ndarray) -> str:
    """Copies the kept samples unchanged into shards of the same names, and returns their brace pattern."""
    sizes: dict[str, int] = {}
    names = [os.path.basename(shard) for shard in data.shards]
    if len(set(names)) < len(names):
        names = [f"{number:06}.tar" for number in range(len(names))]
    with whole_output(out, overwrite=True) as folder:
        folder.mkdir()
        for index, records in itertools.groupby(_of_kept(scores, kept), lambda record: record["place"][0]):
            numbers, name = {record["place"][1] for record in records}, names[index]
            with (
                tarfile.open(data.shards[index]) as source,
                tarfile.open(folder / name, "w", format=tarfile.GNU_FORMAT) as target,
                contextlib.suppress(EOFError, tarfile.TarError),  # damage after the last kept sample
            ):
                for number, _, member in numbered_members(source):
                    if number > max(numbers):
                        break
                    if number in numbers:
                        target.addfile(member, source.extractfile(member))
                        target.members.clear()
            sizes[name] = len(numbers)
        write_json(folder / "sizes.json", sizes)
    return contract([str(out / name) for name in sizes])
