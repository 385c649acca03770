"""What --keep writes: the keys of the best pairs, and the rows or shards that hold them, unchanged."""

import csv
import io
import itertools
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from ..data.shards import contract, is_remote
from ..errors import InputError
from ..files import whole_file, whole_output, write_json
from .pairs import AuditedFiles, AuditedShards, numbered_members
from .store import read_scores

KEYS, TABLE, UIDS, SHARDS = "kept.txt", "kept", "kept.npy", "kept"


def choose(goodness: np.ndarray, share: float) -> np.ndarray:
    """Returns which pairs are kept, bool [N]: the best `share` of those that have a score, one at least.

    Of equals the first are kept.
    """
    num_scored = int(np.isfinite(goodness).sum())
    kept = np.zeros(len(goodness), dtype=bool)
    kept[np.argsort(-goodness, kind="stable")[: max(1, round(share * num_scored))]] = True
    return kept


def write_kept(
    out: Path, data: AuditedFiles | AuditedShards, scores: Path, kept: np.ndarray, write_shards: bool
) -> list[str]:
    """Writes what holds the kept pairs, and returns its files, for people.

    kept.txt has their keys, a line each: the path of the picture, or the sample's key. Of a table kept.csv has its very
    lines; of a folder, paths and captions. Of shards kept.npy has the uids in DataComp's form, where every sample has
    one, and with `write_shards` the folder kept has the samples, each shard's in one of the same name. What an earlier
    call has kept is not left beside it.
    """
    try:
        (out / UIDS).unlink(missing_ok=True)
        if not write_shards and (out / SHARDS).exists():
            shutil.rmtree(out / SHARDS)
        with whole_file(out / KEYS) as file:
            for record in _of_kept(scores, kept):
                file.write(f"{record['key']}\n".encode("utf-8", "replace"))
        written = [str(out / KEYS)]
        if isinstance(data, AuditedFiles):
            written.append(str(_write_table(out, data, scores, kept)))
        elif (uids := _write_uids(out / UIDS, scores, kept)) is not None:
            written.append(str(uids))
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written ({error.strerror or error})") from error
    if write_shards:
        written.append(_write_shards(out / SHARDS, data, scores, kept))
    return written


def _of_kept(scores: Path, kept: np.ndarray) -> Iterator[dict]:
    return itertools.compress(read_scores(scores), kept)


def _write_table(out: Path, data: AuditedFiles, scores: Path, kept: np.ndarray) -> Path:
    if not data.is_table:
        path = out / f"{TABLE}.csv"
        with whole_file(path) as file:
            file.write(_csv_line(["image", "caption"]))
            for record in _of_kept(scores, kept):
                file.write(_csv_line([record["key"], record["caption"]]))
        return path
    path = out / f"{TABLE}{Path(data.given).suffix}"
    with _open_table(data) as table, whole_file(path) as file:
        lines = _lines_of_rows(table, data.columns.separator)
        file.write(next(lines).encode("utf-8", "surrogateescape"))
        for line, is_kept in zip(lines, kept, strict=True):
            if is_kept:
                file.write((line if line.endswith("\n") else f"{line}\n").encode("utf-8", "surrogateescape"))
    return path


def check_table(data: AuditedFiles) -> None:
    """Raises InputError where the rows of a table cannot be told apart as OpenCLIP does, to copy some of them."""
    if len(data.columns.separator) != 1:
        raise InputError(
            f"--csv-separator is {data.columns.separator!r}; --keep copies rows, and expects one character, such as "
            "$'\\t' for a tab"
        )
    try:
        with _open_table(data) as table:
            num_rows = sum(1 for _ in _lines_of_rows(table, data.columns.separator)) - 1
    except csv.Error as error:
        raise InputError(f"--keep: {data.given} cannot be copied row by row ({error}): leave --keep out") from None
    if num_rows != data.num_pairs:
        raise InputError(
            f"--keep: {data.given} has {num_rows:,} rows by its quotes and {data.num_pairs:,} as OpenCLIP reads it: "
            "write the table anew with one way of quoting, or leave --keep out and choose by scores.jsonl"
        )


def _open_table(data: AuditedFiles) -> TextIO:
    return open(data.given, encoding="utf-8", errors="surrogateescape", newline="")


def _lines_of_rows(table: TextIO, separator: str) -> Iterator[str]:
    """Yields the text of each row, of several lines where a value holds a line break; blank lines are none.

    Nor are lines of blanks alone, which pandas passes over.
    """
    taken: list[str] = []

    def lines() -> Iterator[str]:
        for line in table:
            taken.append(line)
            yield line

    for row in csv.reader(lines(), delimiter=separator):
        text = "".join(taken)
        taken.clear()
        if len(row) > 1 or text.strip():
            yield text


def _csv_line(values: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode("utf-8", "replace")


def _write_uids(path: Path, scores: Path, kept: np.ndarray) -> Path | None:
    """Writes DataComp's list of samples, sorted pairs of 64 bits; None where a kept sample has no uid."""
    uids = []
    for record in _of_kept(scores, kept):
        if "uid" not in record:
            return None
        uids.append((int(record["uid"][:16], 16), int(record["uid"][16:], 16)))
    if not uids:
        return None
    with whole_file(path) as file:
        np.save(file, np.sort(np.array(uids, dtype="u8,u8")))
    return path


def _write_shards(out: Path, data: AuditedShards, scores: Path, kept: np.ndarray) -> str:
    sizes: dict[str, int] = {}
    names = _names(data.shards)
    with whole_output(out, overwrite=True) as folder:
        folder.mkdir()
        by_shard = itertools.groupby(zip(read_scores(scores), kept, strict=True), lambda pair: pair[0]["place"][0])
        for place, pairs in by_shard:
            numbers = {record["place"][1] for record, is_kept in pairs if is_kept}
            if numbers:
                _copy_samples(data.shards[place], folder / names[place], numbers)
                sizes[names[place]] = len(numbers)
        write_json(folder / "sizes.json", sizes)
    return contract([str(out / name) for name in sizes])


def _names(shards: list[str]) -> list[str]:
    """Returns the files' own names, or numbers where two are alike or a shard is no file."""
    names = [os.path.basename(shard) for shard in shards]
    if len(set(names)) < len(names) or any(map(is_remote, shards)):
        return [f"{number:06}.tar" for number in range(len(shards))]
    return names


def _copy_samples(shard: str, out: Path, numbers: set[int]) -> None:
    """Copies the members of samples, byte by byte, by their numbers in a shard."""
    with tarfile.open(shard) as source, tarfile.open(out, "w", format=tarfile.GNU_FORMAT) as target:
        for number, _, member in numbered_members(source):
            if number > max(numbers):
                return
            if number in numbers:
                target.addfile(member, source.extractfile(member))
                target.members.clear()
