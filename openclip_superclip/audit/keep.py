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

from ..data.shards import contract
from ..errors import InputError, reason
from ..files import whole_file, whole_output, write_json
from .pairs import AuditedFiles, AuditedShards, numbered_members
from .store import read_scores

KEYS, TABLE, UIDS, SHARDS = "kept.txt", "kept", "kept.npy", "kept"


def select(goodness: np.ndarray, fraction: float) -> np.ndarray:
    """Returns which pairs are kept, bool [N]: the best `fraction` of those with a score, at least one.

    Of equal ones the first are kept.
    """
    num_scored = int(np.isfinite(goodness).sum())
    kept = np.zeros(len(goodness), dtype=bool)
    kept[np.argsort(-goodness, kind="stable")[: max(1, round(fraction * num_scored))]] = True
    return kept


def write_kept(
    out: Path, data: AuditedFiles | AuditedShards, scores: Path, kept: np.ndarray, write_shards: bool
) -> list[str]:
    """Writes the files of the kept pairs, and returns their names.

    kept.txt has one key per line: the path of the image, or the sample's key. For a table, kept.csv has its exact
    lines; for a folder, paths and captions. For shards, kept.npy has the uids in DataComp's format if every sample has
    one, and with `write_shards` the folder kept has the samples, in shards of the same names. Replaces the files of an
    earlier call.
    """
    try:
        (out / UIDS).unlink(missing_ok=True)
        if not write_shards and (out / SHARDS).exists():
            shutil.rmtree(out / SHARDS)
        with whole_file(out / KEYS) as file:
            file.writelines(f"{record['key']}\n".encode("utf-8", "replace") for record in _of_kept(scores, kept))
        written = [str(out / KEYS)]
        if isinstance(data, AuditedFiles):
            written.append(str(_write_table(out, data, scores, kept)))
        else:
            uids = [record.get("uid", "") for record in _of_kept(scores, kept)]
            if all(uids):
                halves = [(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids]
                with whole_file(out / UIDS) as file:
                    np.save(file, np.sort(np.array(halves, dtype="u8,u8")))
                written.append(str(out / UIDS))
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written ({error.strerror or reason(error)})") from error
    if write_shards:
        written.append(_write_shards(out / SHARDS, data, scores, kept))
    return written


def _of_kept(scores: Path, kept: np.ndarray) -> Iterator[dict]:
    return itertools.compress(read_scores(scores), kept)


def _write_table(out: Path, data: AuditedFiles, scores: Path, kept: np.ndarray) -> Path:
    if data.is_table:
        path = out / f"{TABLE}{Path(data.given).suffix}"
        with _open_table(data) as table, whole_file(path) as file:
            rows = _rows(table, data.columns.separator)
            for text in itertools.chain([next(rows)], itertools.compress(rows, kept)):
                file.write((text if text.endswith("\n") else f"{text}\n").encode("utf-8", "surrogateescape"))
        return path
    path, text = out / f"{TABLE}.csv", io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "caption"])
    writer.writerows([record["key"], record["caption"]] for record in _of_kept(scores, kept))
    with whole_file(path) as file:
        file.write(text.getvalue().encode("utf-8", "replace"))
    return path


def check_table(data: AuditedFiles) -> None:
    """Raises InputError if the rows of a table cannot be separated as OpenCLIP does, to copy some of them."""
    if len(data.columns.separator) != 1:
        raise InputError(
            f"--csv-separator is {data.columns.separator!r}; --keep copies rows, and expects one character, such as "
            "$'\\t' for a tab"
        )
    try:
        with _open_table(data) as table:
            num_rows = sum(1 for _ in _rows(table, data.columns.separator)) - 1
    except csv.Error as error:
        raise InputError(f"--keep: {data.given} cannot be copied row by row ({error}): leave --keep out") from None
    if num_rows != data.num_pairs:
        raise InputError(
            f"--keep: {data.given} has {num_rows:,} rows by its quotes and {data.num_pairs:,} as OpenCLIP reads it: "
            "quote all rows in the same way, or leave --keep out and select by scores.jsonl"
        )


def _open_table(data: AuditedFiles) -> TextIO:
    return open(data.given, encoding="utf-8", errors="surrogateescape", newline="")


def _rows(table: TextIO, separator: str) -> Iterator[str]:
    """Yields the text of each row, several lines if a value has line breaks; pandas skips blank lines, too."""
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


def _write_shards(out: Path, data: AuditedShards, scores: Path, kept: np.ndarray) -> str:
    """Copies the kept samples, byte for byte, into shards of the same names; returns their pattern."""
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
