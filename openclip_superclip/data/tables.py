"""Tables of images and captions: detection, columns and rows."""

import os
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import InputError, as_input_error, listed
from .tar_shards import is_remote

SEPARATORS = ",\t;|"  # of which the most frequent one in the header is taken
# OpenCLIP's defaults, then the most common names
NAMES = (("filepath", "title"), ("image", "caption"))
NUM_LOOKED_AT = 20  # first lines of a table, to find its columns
ROWS_AT_ONCE = 10_000


class Columns(NamedTuple):
    """OpenCLIP's --csv-separator, --csv-img-key and --csv-caption-key."""

    separator: str = "\t"
    image: str = "filepath"
    caption: str = "title"

    @property
    def description(self) -> str:
        return (
            f"images in column '{self.image}', captions in '{self.caption}', separated by "
            f"{self.separator!r}"
        )

    @property
    def pandas_options(self) -> dict[str, str]:
        """The options of pandas.read_csv for the separator: only its Python engine reads
        patterns."""
        is_pattern = len(self.separator.encode()) > 1 and self.separator != r"\s+"
        return {"sep": self.separator, "engine": "python" if is_pattern else "c"}


def kind(data: str, dataset_type: str = "auto") -> str:
    """Returns how OpenCLIP reads data: "table", "shards" or "synthetic"; "" if neither the name nor
    the type decides."""
    kinds = {"csv": "table", "tsv": "table", "tar": "shards", "webdataset": "shards"}
    name = data.rpartition(".")[2] if dataset_type == "auto" else dataset_type
    return kinds.get(name, "" if dataset_type == "auto" else name)


def is_table(data: str | None) -> bool:
    """Returns whether OpenCLIP reads data as a table."""
    return kind(data or "") == "table"


def detect_columns(
    path: str, separator: str | None, image: str | None, caption: str | None, flag: str
) -> Columns:
    """Returns the columns of a table, detected if None; InputError if the table cannot be read or
    several are possible.

    The separator is one between known names in the header, else the most frequent one. The columns
    are (filepath, title), else (image, caption), else one of these names, the only column of
    existing image files and the only other column.
    """
    if is_remote(path):
        return Columns(separator or ",", image or "image", caption or "caption")
    with as_input_error(f"{flag}: {path} is not a readable table"):
        if not separator:
            with open(path, encoding="utf-8-sig") as file:
                separator = _separator_of(file.readline())
        names, *rows = _first_rows(path, Columns(separator), NUM_LOOKED_AT)
    complete = [
        pair
        for pair in NAMES
        if set(pair) <= set(names) and pair == (image or pair[0], caption or pair[1])
    ]
    pairs = complete[:1] or NAMES
    known_images = [name for name, _ in pairs if name in names]
    # of several known names, the one that stock OpenCLIP reads
    images = [image] if image else known_images[:1]
    captions = [caption] if caption else [name for _, name in pairs if name in names][:1]
    if not images:
        columns_of_cells = zip(names, *rows, strict=True)
        images = [name for name, *cells in columns_of_cells if cells and all(map(_is_file, cells))]
    if not captions:
        captions = [name for name in names if name not in (*images, *known_images)]
    columns = Columns(
        separator,
        images[0] if len(images) == 1 else "image",
        captions[0] if len(captions) == 1 else "caption",
    )
    _check_header(path, names, columns)
    return columns


def _separator_of(header: str) -> str:
    """Returns the separator in a header: one between known names, else the most frequent one."""
    known = {name for pair in NAMES for name in pair}

    def rank(separator: str) -> tuple[bool, int]:
        return not known.isdisjoint(header.split(separator)), header.count(separator)

    return max(SEPARATORS, key=rank)


def _first_rows(path: str, columns: Columns, number: int) -> list[list]:
    """Returns the header as in the file, where pandas renames the second of two equal names, and
    the first rows; cells that a row lacks are NaN."""
    import pandas as pd

    rows = pd.read_csv(
        path,
        **columns.pandas_options,
        header=None,
        nrows=1 + number,
        dtype=str,
        keep_default_na=False,
        on_bad_lines="skip",  # whose extra values are reported later
    )
    return rows.values.tolist()


def _is_file(cell: object) -> bool:
    return isinstance(cell, str) and os.path.isfile(cell)


def chunks_of(path: str, columns: Columns, flag: str, dtype: type | None = None) -> Iterator:
    """Yields the rows of a table as data frames, after checking the header; InputError if it cannot
    be read.

    If `dtype` is str, numbers are texts.
    """
    # as in OpenCLIP: any separator, encoding and compression that pandas supports
    import pandas as pd

    with (
        as_input_error(f"{flag}: {path} is not a readable table"),
        pd.read_csv(path, **columns.pandas_options, chunksize=ROWS_AT_ONCE, dtype=dtype) as chunks,
    ):
        for rows in chunks:
            _check_header(path, list(rows), columns)
            # pandas takes extra values for row names
            if len(rows) and not isinstance(rows.index, pd.RangeIndex):
                raise InputError(
                    f"{flag}: rows of {path} hold more values than its {len(rows.columns)} "
                    f"columns; expected quotes around a value that holds {columns.separator!r}"
                )
            yield rows


def has_columns(path: str, columns: Columns, flag: str) -> bool:
    """Returns whether OpenCLIP finds its columns in the table of `flag`."""
    with as_input_error(f"{flag}: {path} is not a readable table"):
        (names,) = _first_rows(path, columns, 0)
    return {columns.image, columns.caption} <= set(names)


def _check_header(path: str, names: list[str], columns: Columns) -> None:
    """Raises InputError if a column is missing."""
    for flag, key in (("--csv-img-key", columns.image), ("--csv-caption-key", columns.caption)):
        if key not in names:
            raise InputError(
                f"{flag}: {path} has no column '{key}'; its columns are {listed(names)} (separated "
                f"by {columns.separator!r})"
            )
