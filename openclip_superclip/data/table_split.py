"""Splits a table of pairs into a table for training and one for validation."""

import contextlib
import csv
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..files import content_digest, make_folder, write_json
from .held_out import held_out, image_digests
from .tables import Columns, is_table, rows_of
from .tar_shards import is_empty, is_remote

RECORD = "split.json"


@dataclass(frozen=True)
class TableSplit:
    """The two tables of a split."""

    folder: Path
    num_train: int
    num_val: int
    is_new: bool  # whether this call has written it
    is_parent_new: bool = False

    @property
    def train(self) -> str:
        return str(self.folder / "train.csv")

    @property
    def val(self) -> str:
        return str(self.folder / "val.csv")

    def remove(self) -> None:
        """Removes the tables if this call has written them."""
        if self.is_new:
            shutil.rmtree(self.folder)
        if self.is_parent_new:
            with contextlib.suppress(OSError):  # it contains something else
                os.removedirs(self.folder.parent)


def split_table(
    table: str, columns: Columns, fraction: float, parent: Path, data_flag: str, out_flag: str
) -> TableSplit:
    """Writes a folder split-ID in `parent` with train.csv, val.csv and split.json, unless it is
    there.

    ID is a digest of the table, its columns and `fraction`, the fraction of the pairs for
    validation, so that the same call finds the same tables. Several processes may write them at
    once.

    Raises InputError, naming --val-fraction, `data_flag` or `out_flag`, before anything is written.
    """
    if not is_table(table) or is_remote(table):
        raise InputError(
            f"--val-fraction splits a table on this machine, and {data_flag} is {table}; "
            "expected a .csv or .tsv, or --val-data"
        )
    if len(columns.separator) > 1:
        raise InputError(
            f"--val-fraction needs one character as the separator; it is {columns.separator!r}"
        )
    rows = list(rows_of(table, columns, data_flag, dtype=str))
    identity = json.dumps([content_digest(Path(table)), *columns, fraction])
    folder = parent / f"split-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    if (folder / RECORD).exists():
        record = json.loads((folder / RECORD).read_text())
        return TableSplit(folder, record["num_train"], record["num_val"], is_new=False)
    images = [str(row[columns.image]) for row in rows]
    captions = ["" if is_empty(row[columns.caption]) else row[columns.caption] for row in rows]
    digests = image_digests(images)
    sides = held_out([digests[image] for image in images], captions, fraction, "--val-fraction")
    split = TableSplit(
        folder,
        sides.count(False),
        sides.count(True),
        is_new=True,
        is_parent_new=not parent.exists(),
    )
    make_folder(parent, out_flag)
    part = parent / f"split-{uuid.uuid4().hex}.part"
    part.mkdir()
    try:
        for name, is_val in ((split.train, False), (split.val, True)):
            chosen = [row for row, side in zip(rows, sides, strict=True) if side == is_val]
            _write_rows(part / Path(name).name, chosen, columns.separator)
        record = {
            "table": os.path.abspath(table),
            "fraction": fraction,
            "columns": columns._asdict(),
        }
        write_json(
            part / RECORD, {**record, "num_train": split.num_train, "num_val": split.num_val}
        )
        os.rename(part, folder)
    except OSError:
        if not (folder / RECORD).exists():  # another process was not faster
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return split


def _write_rows(file: Path, rows: Sequence[dict], separator: str) -> None:
    with open(file, "w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened, delimiter=separator, lineterminator="\n")
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow(value if isinstance(value, str) else "" for value in row.values())
