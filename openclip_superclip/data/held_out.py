"""Holds out pairs for validation, so that no image and no caption is on both sides of the split,
and splits tables so."""

import contextlib
import hashlib
import html
import json
import os
import shutil
import time
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.contrib.concurrent import thread_map

from ..errors import InputError
from ..files import atomic_output, content_digest, make_folder, read_json, write_json
from .caption_text import text_of
from .tables import Columns, chunks_of, is_table
from .tar_shards import is_remote

if TYPE_CHECKING:
    import pandas as pd

SPLIT = "split-"  # begins the name of a folder with the parts of a table
RECORD = "split.json"  # in it
TRAIN = "train.csv"
VAL = "val.csv"
MAX_WAIT = 3600  # seconds that a rank waits for the split of the first one


def image_digests(paths: Sequence[str]) -> list[str]:
    """Returns a digest of each image's content, or the path itself for an unreadable file."""
    different = list(dict.fromkeys(paths))
    digests = thread_map(_digest, different, desc="comparing images", unit=" images", disable=None)
    by_path = dict(zip(different, digests, strict=True))
    return [by_path[path] for path in paths]


def _digest(path: str) -> str:
    with contextlib.suppress(OSError):
        if os.path.isfile(path):  # a device may have no end, and a pipe no writer
            return content_digest(Path(path))
    return path


def held_out(images: Sequence[str], captions: Sequence[str], fraction: float) -> list[bool]:
    """Returns for each pair whether it is held out for validation.

    Pairs that share an image or a caption, directly or through other pairs, form a group, and a
    group is on one side. Captions that differ only in case, white space, or the encoding of
    characters (Unicode's composition, HTML's entities) are equal. Groups are held out in an order
    that depends on their content alone, until `fraction` of the pairs with a caption (their number
    if it is 1 or more) is reached; groups that would exceed it are left for training. Paths and the
    order of the pairs do not matter, and adding pairs changes the side of few others.

    Args:
        images: digests of the images, as `image_digests` returns them.
        captions: the captions; "" if missing.

    Raises InputError if all pairs with a caption form one group, or are not more than `fraction`.
    """
    if not any(captions):
        raise InputError(f"--val-fraction is {fraction}: no pair has a caption")
    groups = _groups(images, captions)
    sizes = Counter(group for group, caption in zip(groups, captions, strict=True) if caption)
    num_pairs = sizes.total()
    if len(sizes) < 2:
        raise InputError(
            f"--val-fraction is {fraction}: the {num_pairs:,} pairs with a caption cannot be "
            "split, because all of them share images or captions; expected different images and "
            "captions, or --val-data instead"
        )

    if fraction >= num_pairs:
        raise InputError(
            f"--val-fraction is {fraction:g}: none of the {num_pairs:,} pairs with a caption would "
            "be left for training"
        )

    def digest(group: str) -> bytes:
        return hashlib.sha256(group.encode(errors="replace")).digest()

    in_order = sorted(sizes, key=digest)
    wanted = round(fraction if fraction >= 1 else fraction * num_pairs)
    wanted = min(max(wanted, 1), num_pairs - 1)
    chosen = set()
    num_chosen = 0
    for group in in_order:
        if num_chosen + sizes[group] <= wanted:
            chosen.add(group)
            num_chosen += sizes[group]
    if not chosen:  # every group is larger than the fraction
        chosen.add(min(in_order, key=sizes.get))
    return [group in chosen for group in groups]


def _groups(images: Sequence[str], captions: Sequence[str]) -> list[str]:
    """Returns the group of each pair, named by the first of its images in alphabetical order."""
    from networkx.utils import UnionFind

    groups = UnionFind()
    for image, caption in zip(images, captions, strict=True):
        if caption:
            text = unicodedata.normalize("NFC", html.unescape(caption)).casefold()
            groups.union(("image", image), ("caption", " ".join(text.split())))
    names = {}
    for image in sorted(set(images), reverse=True):
        names[groups["image", image]] = image
    return [names[groups["image", image]] for image in images]


@dataclass
class TableSplit:
    """The two tables of a split, which `write` writes into a folder."""

    folder: Path
    record: dict  # the content of split.json
    parts: dict[str, "pd.DataFrame"] = field(default_factory=dict)  # by name; {} if they are there
    is_new: bool = False  # whether `write` has written them
    new_parents: tuple[Path, ...] = ()  # of the folder, which `write` has made, inner ones first

    @property
    def train(self) -> str:
        return str(self.folder / TRAIN)

    @property
    def val(self) -> str:
        return str(self.folder / VAL)

    def write(self, out_flag: str) -> None:
        """Writes both tables and split.json, unless they are there; several processes may do so
        at once."""
        if not self.parts or (self.folder / RECORD).exists():
            return
        parent = self.folder.parent
        self.new_parents = tuple(each for each in (parent, *parent.parents) if not each.exists())
        make_folder(parent, out_flag)
        try:
            with atomic_output(self.folder, overwrite=False) as part:
                part.mkdir()
                for name, rows in self.parts.items():
                    rows.to_csv(
                        part / name,
                        sep=self.record["columns"]["separator"],
                        index=False,
                        lineterminator="\r\n",  # a cell with either of them is quoted
                    )
                write_json(part / RECORD, self.record)
        except OSError:
            if not (self.folder / RECORD).exists():
                raise
            return  # another process was faster; its tables are not this one's to remove
        self.is_new = True

    def remove(self) -> None:
        """Removes the tables if `write` has written them."""
        if self.is_new:
            shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # one contains something else
            for parent in self.new_parents:
                parent.rmdir()


def split_table(
    table: str,
    columns: Columns,
    fraction: float,
    parent: Path,
    data_flag: str,
    out_flag: str,
    *,
    is_first: bool = True,
) -> TableSplit:
    """Returns the split of a table: the one in a folder split-ID of `parent`, or a new one to be
    written there.

    ID is a digest of the table, its columns and `fraction`, the fraction or the number of the pairs
    for validation, so that the same call finds the same tables. Of the ranks of a machine, only the
    first one compares the images; the others wait until it has written the split.

    Raises InputError, naming --val-fraction, `data_flag` or `out_flag`.
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
    import pandas as pd

    rows = pd.concat(chunks_of(table, columns, data_flag, dtype=str))
    identity = json.dumps([content_digest(Path(table)), *columns, fraction])
    folder = parent / f"{SPLIT}{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    if not is_first:
        _wait_for(folder / RECORD, out_flag)
    if (folder / RECORD).exists():
        return TableSplit(folder, read_json(folder / RECORD, out_flag, f"remove {folder}"))
    images = image_digests(list(map(str, rows[columns.image])))
    captions = list(map(text_of, rows[columns.caption]))
    val = rows[held_out(images, captions, fraction)]
    train = rows.drop(val.index)
    record = {
        "table": os.path.abspath(table),
        "fraction": fraction,
        "columns": columns._asdict(),
        "num_train": len(train),
        "num_val": len(val),
    }
    return TableSplit(folder, record, {TRAIN: train, VAL: val})


def _wait_for(record: Path, out_flag: str) -> None:
    """Waits until the first rank has written a split; InputError if it has not after an hour."""
    deadline = time.monotonic() + MAX_WAIT
    while not record.exists():
        if time.monotonic() > deadline:
            raise InputError(
                f"{out_flag}: the first rank of this machine has not written {record}: its error "
                "is the cause"
            )
        time.sleep(0.2)
