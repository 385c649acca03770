"""Looks at a table of pictures and captions before anything is loaded: columns, captions, pictures, rows."""

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from ..config import Config
from ..errors import InputError
from .images import picture_problems
from .shards import is_empty, is_remote, long_caption


class Columns(NamedTuple):
    """OpenCLIP's --csv-separator, --csv-img-key and --csv-caption-key."""

    separator: str = "\t"
    image: str = "filepath"
    caption: str = "title"


def is_table_file(path: str | None) -> bool:
    """Returns whether OpenCLIP takes a path for a table by its name alone."""
    return bool(path) and path.rpartition(".")[2] in ("csv", "tsv")


ROWS_AT_ONCE = 10_000  # pictures of the first of them are looked for


NUM_DECODED = 256  # of these pictures


SEPARATORS = (",", "\t", ";", "|")


class TableLook(NamedTuple):
    """What was found in a table."""

    num_rows: int
    num_empty: int  # rows without a caption
    num_long: int  # rows with a long caption, where one is read
    names: list[str]  # of its columns


def check_table(
    path: str,
    columns: Columns,
    config: Config,
    batch_size: int,
    world_size: int,
    flag: str = "--train-data",
    pictures: bool = True,
) -> list[str]:
    """Returns what is to be said of the table at `path`, lines for people.

    Raises InputError where it lacks a column, captions, rows for a batch on every rank, or one of the pictures of its
    first ten thousand rows. A URL is left to OpenCLIP.

    Args:
        batch_size: a rank's.
        flag: names the table.
        pictures: whether these are looked at.
    """
    if is_remote(path):
        return []
    look = look_at_table(path, columns, config, flag, pictures)
    place = _place(config)
    if look.num_empty == look.num_rows:
        raise InputError(f"{flag}: the column '{columns.caption}' of {path} holds no caption")
    if place and not look.num_long:
        names = ", ".join(map(str, look.names))
        raise InputError(f"--superclip-long-caption: no row of {path} holds '{place}'; its columns are {names}")
    needed = world_size * (batch_size - 1) + 1  # ranks share the rows out, rounding up
    num_kept = num_trained(look, config)
    if num_kept < needed:
        kept = f"{look.num_rows:,} rows"
        if num_kept < look.num_rows:
            kept = f"the {num_kept:,} of {look.num_rows:,} rows that --superclip-missing-long skip keeps"
        ranks = "rank" if world_size == 1 else "ranks"
        raise InputError(
            f"{flag}: {path}: {kept} do not fill --batch-size {batch_size:,} on {world_size} {ranks}; expected "
            f"{needed:,} rows or a smaller batch"
        )
    return empty_captions(path, look, flag)


def empty_captions(path: str, look: TableLook, flag: str) -> list[str]:
    """Returns a line on the rows without a caption, or nothing."""
    if not look.num_empty:
        return []
    return [
        f"{flag}: {look.num_empty:,} of the {look.num_rows:,} rows of {path} hold no caption: plain CLIP trains them "
        "as the word 'nan', the class loss without a word; superclip shards leaves such rows out"
    ]


def num_trained(look: TableLook, config: Config) -> int:
    """Returns the rows that are trained on: those with a long caption alone where the others are to be skipped."""
    return look.num_long if _place(config) and config.missing_long == "skip" else look.num_rows


def look_at_table(
    path: str, columns: Columns, config: Config, flag: str = "--train-data", pictures: bool = True
) -> TableLook:
    """Returns what a whole table holds; InputError where OpenCLIP could not read it as it is meant.

    With `pictures` it looks, of the first ten thousand rows, whether they are there and begin as pictures do; some of
    them it decodes.
    """
    if not os.path.exists(path):
        raise InputError(f"{flag}: there is no file {path}")
    place, names = _place(config), []
    num_rows = num_empty = num_long = 0
    for rows in _chunks(path, columns, flag):
        if not num_rows:
            names = list(rows)
            _check_values(path, rows, columns, flag)
            if pictures:
                _check_pictures(path, rows, columns, flag)
        num_rows += len(rows)
        num_empty += sum(map(is_empty, rows[columns.caption]))
        if place:
            num_long += sum(_has_long(row, place) for row in rows.to_dict("records"))
    if not num_rows:
        raise InputError(f"{flag}: {path} holds no row below its header")
    return TableLook(num_rows, num_empty, num_long, names)


def has_empty_captions(path: str, columns: Columns) -> bool:
    """Returns whether a row of a table holds no caption, which OpenCLIP would read as the word 'nan'."""
    import pandas as pd

    captions = pd.read_csv(path, sep=columns.separator, usecols=[columns.caption])[columns.caption]
    return any(map(is_empty, captions))


def rows_of(path: str, columns: Columns, flag: str) -> Iterator[dict]:
    """Yields the rows of a table by the names of its columns; InputError where it cannot be read as it is meant."""
    if not os.path.exists(path):
        raise InputError(f"{flag}: there is no file {path}")
    for rows in _chunks(path, columns, flag):
        _check_values(path, rows, columns, flag)
        yield from rows.to_dict("records")


def pictures_of(path: str, columns: Columns, flag: str) -> Iterator[str]:
    """Yields the pictures that a table names, row by row."""
    for rows in _chunks(path, columns, flag):
        yield from rows[columns.image].astype(str)


def _chunks(path: str, columns: Columns, flag: str) -> Iterator:
    """Yields the rows of a table as pandas' tables, their columns looked for."""
    import pandas as pd  # as OpenCLIP reads it: any separator, encoding and compression that pandas knows

    with _readable(path, flag), pd.read_csv(path, sep=columns.separator, chunksize=ROWS_AT_ONCE) as chunks:
        for rows in chunks:
            _check_columns(path, list(rows), columns)
            yield rows


@contextlib.contextmanager
def _readable(path: str, flag: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:
        advice = ": save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise InputError(f"{flag}: {path} is not a readable table ({' '.join(str(error).split())}){advice}") from error


def _place(config: Config) -> str:
    return config.long_caption if config.captions != "short" else ""


def _check_columns(path: str, found: list, columns: Columns) -> None:
    names = list(map(str, found))
    for flag, key in (("--csv-img-key", columns.image), ("--csv-caption-key", columns.caption)):
        if key in names:
            continue
        others = [separator for separator in SEPARATORS if separator != columns.separator and separator in names[0]]
        if len(names) == 1 and others:
            separator = {"\t": "$'\\t'", ";": "';'", "|": "'|'"}.get(others[0], others[0])
            raise InputError(f"{path} has one column, {names[0]!r}: give --csv-separator {separator}")
        raise InputError(f"{flag}: {path} has no column '{key}'; its columns are {', '.join(names)}")


def _check_values(path: str, rows, columns: Columns, flag: str) -> None:
    """Raises InputError where rows have more values than the header has names."""
    import pandas as pd

    if not isinstance(rows.index, pd.RangeIndex):  # pandas takes the values that are too many for names of rows
        raise InputError(
            f"{flag}: rows of {path} hold more values than its {len(rows.columns)} columns; expected quotes "
            f"around a value that holds {columns.separator!r}"
        )


def _check_pictures(path: str, rows, columns: Columns, flag: str) -> None:
    """Raises InputError, with the first of them, where pictures cannot be read."""
    problems = picture_problems(list(rows[columns.image].astype(str)), NUM_DECODED)
    bad = [row for row, problem in enumerate(problems) if problem]
    if not bad:
        return
    first = bad[0]
    picture, problem = rows[columns.image].iloc[first], problems[first]
    advice = f"paths are from {os.getcwd()}, where this runs" if problem == "no such file" else "remove or replace it"
    raise InputError(
        f"{flag}: row {first + 1} of {path} names {picture}: {problem}; {len(bad):,} such among the first "
        f"{len(problems):,} rows; {advice}, and superclip shards leaves such rows out"
    )


def _has_long(row: dict, place: str) -> bool:
    try:
        return bool(long_caption(row, place))
    except ValueError:  # a JSON that cannot be read: the row is left out
        return False
