"""Looks at a table of training data before anything is loaded: its columns, its captions, whether it fills a batch."""

import os
from typing import NamedTuple

from ..config import Config
from ..errors import InputError
from .caption_tokens import long_caption
from .shard_pattern import is_remote

ROWS_AT_ONCE = 10_000


class Columns(NamedTuple):
    """How OpenCLIP reads a table: its --csv-separator, --csv-img-key and --csv-caption-key."""

    separator: str
    image: str
    caption: str


def check_table(path: str, columns: Columns, config: Config, batch_size: int, world_size: int) -> None:
    """Raises InputError where the table at `path` lacks a column, or captions, or rows for a batch on every rank.

    Reads as many rows as it takes to tell, and all of them only where they lack something; of the first ten thousand
    it looks whether the pictures are there. A URL is left to OpenCLIP.
    `batch_size` is a rank's.
    """
    import pandas as pd  # as OpenCLIP reads it: any separator, encoding and compression that pandas knows

    if is_remote(path):
        return
    if not os.path.exists(path):
        raise InputError(f"--train-data: there is no file {path}")
    place = config.long_caption if config.captions != "short" else ""
    skips = bool(place) and config.missing_long == "skip"
    needed = world_size * (batch_size - 1) + 1  # ranks share the rows out, rounding up
    num_rows = num_kept = 0
    captioned, has_long = False, not place
    try:
        with pd.read_csv(path, sep=columns.separator, chunksize=ROWS_AT_ONCE) as chunks:
            for rows in chunks:
                _check_columns(path, list(rows), columns)
                if not num_rows:
                    _check_first_rows(path, rows, columns)
                num_rows += len(rows)
                captioned = captioned or rows[columns.caption].dropna().astype(str).str.strip().any()
                if place and (skips or not has_long):
                    num_long = sum(_has_long(row, place) for row in rows.to_dict("records"))
                    has_long, num_kept = has_long or num_long > 0, num_kept + num_long
                if captioned and has_long and (num_kept if skips else num_rows) >= needed:
                    return
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        advice = ": save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise InputError(
            f"--train-data: {path} is not a readable table ({' '.join(str(error).split())}){advice}"
        ) from error
    if not captioned:
        raise InputError(f"--train-data: the column '{columns.caption}' of {path} holds no caption")
    if not has_long:
        raise InputError(
            f"--superclip-long-caption: no row of {path} holds '{place}'; its columns are {', '.join(map(str, rows))}"
        )
    kept = f"{num_rows:,} rows"
    if skips:
        kept = f"the {num_kept:,} of {num_rows:,} rows that --superclip-missing-long skip keeps"
    ranks = "rank" if world_size == 1 else "ranks"
    raise InputError(
        f"--train-data: {path}: {kept} do not fill --batch-size {batch_size:,} on {world_size} {ranks}; expected "
        f"{needed:,} rows or a smaller batch"
    )


def _check_columns(path: str, found: list[str], columns: Columns) -> None:
    for flag, key in (("--csv-img-key", columns.image), ("--csv-caption-key", columns.caption)):
        if key not in found:
            separator = f"; --csv-separator is {columns.separator!r}: is it another?" if len(found) == 1 else ""
            raise InputError(
                f"{flag}: {path} has no column '{key}'; its columns are {', '.join(map(str, found))}{separator}"
            )


def _check_first_rows(path: str, rows, columns: Columns) -> None:
    """Raises InputError where rows have more values than the header has names, and where pictures are not there."""
    import pandas as pd

    if not isinstance(rows.index, pd.RangeIndex):  # pandas takes the values that are too many for names of rows
        raise InputError(
            f"--train-data: rows of {path} hold more values than its {len(rows.columns)} columns; expected quotes "
            f"around a value that holds {columns.separator!r}"
        )
    pictures = rows[columns.image].astype(str)
    missing = [picture for picture in pictures if not (is_remote(picture) or os.path.exists(picture))]
    if missing:
        raise InputError(
            f"--train-data: {path} names pictures that are not there: {len(missing):,} of the first {len(pictures):,}, "
            f"beginning with {missing[0]}; expected paths from {os.getcwd()}, where this runs: correct them, or remove "
            "their rows"
        )


def _has_long(row: dict, place: str) -> bool:
    try:
        return bool(long_caption(row, place))
    except ValueError:  # a JSON that cannot be read: the row is left out
        return False
