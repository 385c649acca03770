"""Tables of images and captions: detection, columns, contents, and checks before training."""

import contextlib
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tqdm.contrib.concurrent import thread_map

from ..errors import InputError, listed, reason
from ..flags import Config
from .caption_text import has_long_caption, text_of
from .data_check import BadFile, DataCheck
from .images import check_image
from .tar_shards import is_remote

SEPARATORS = ",\t;|"  # of which the most frequent one in the header is taken
# OpenCLIP's defaults, then the most common names
NAMES = (("filepath", "title"), ("image", "caption"))
NUM_LOOKED_AT = 20  # first lines of a table, to find its columns
ROWS_AT_ONCE = 10_000
MAX_HEADER = 100_000  # characters; more columns would take minutes
MAX_DECODED = 200  # images, spread over a table, that are decoded before training
SHORT = Config()  # reads no long caption


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
    with _readable(path, flag):
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

    try:
        rows = pd.read_csv(
            path,
            **columns.pandas_options,
            header=None,
            nrows=1 + number,
            dtype=str,
            keep_default_na=False,
            on_bad_lines="skip",  # whose extra values are reported later
        )
    except re.error as error:
        raise InputError(
            f"--csv-separator is {columns.separator!r}; expected one character or a regular "
            f"expression ({error})"
        ) from None
    return rows.values.tolist()


def _is_file(cell: object) -> bool:
    return isinstance(cell, str) and os.path.isfile(cell)


def check_table(
    path: str,
    columns: Columns,
    flag: str,
    *,
    config: Config = SHORT,
    max_decoded: int | None = MAX_DECODED,
    rows: Iterable | None = None,
) -> DataCheck:
    """Returns what the table at `path` contains, with warnings; nothing for a URL, which is not
    checked.

    At most `max_decoded` images, evenly spaced, are decoded; None decodes all. `rows` are data
    frames of a table that is not written yet.

    Raises InputError, naming `flag`, for missing columns or captions, and if OpenCLIP could not
    read the table correctly. Missing and damaged images are warnings; `bad_images` makes them an
    error.
    """
    table = DataCheck(path, flag, full=max_decoded is None)
    if is_remote(path):
        return table
    long_key = config.long_caption_key
    images = []
    swallowing = ""  # the first row whose caption contains other rows
    for chunk in rows or chunks_of(path, columns, flag):
        names = list(chunk)
        captions = [text_of(caption) for caption in chunk[columns.caption]]
        swallowing = swallowing or _swallowing_row(
            captions, chunk[columns.image], columns.separator
        )
        table.count_captions(captions)
        if long_key:
            table.num_long += sum(
                has_long_caption(row, long_key) for row in chunk.to_dict("records")
            )
        if max_decoded != 0:
            images += map(str, chunk[columns.image])
    if not table.num_samples:
        raise InputError(f"{flag}: {path} holds no row below its header")
    if long_key and not table.num_long:
        raise InputError(
            f"--superclip-long-caption: no row of {path} holds '{config.long_caption}'; its "
            f"columns are {listed(names)}"
        )
    if table.num_empty == table.num_samples:
        raise InputError(f"{flag}: the column '{columns.caption}' of {path} holds no caption")
    if swallowing:
        table.warnings.append(
            f"{flag}: the caption of {swallowing} in {path} contains other rows of the table: "
            "close its quotation mark, or write it twice"
        )
    table.num_trained = table.num_long if config.missing_long == "skip" else table.num_samples
    _check_images(table, images, max_decoded)
    if table.bad:
        table.warnings.append(f"{table.bad_text()}; such rows are skipped")
    table.warnings += table.content_warnings(
        "the text tower reads the word 'nan', as in stock OpenCLIP, and the class loss no word"
    )
    return table


def _swallowing_row(captions: list[str], images: Iterable, separator: str) -> str:
    """Returns the image of the first row whose caption contains lines like those of the table,
    because a quotation mark is not closed; "" if there is none."""
    for image, caption in zip(map(str, images), captions, strict=True):
        extension = os.path.splitext(image)[1]
        for line in caption.splitlines()[1:]:
            if extension and extension in line and separator in line:
                return image
    return ""


def _check_images(table: DataCheck, images: list[str], max_decoded: int | None) -> None:
    """Decodes images of a table, and adds what is found."""
    stride = math.ceil(len(images) / max_decoded) if max_decoded else 1
    chosen = images[::stride]
    table.num_checked = len(chosen)
    # Pillow decodes without holding the GIL
    checks = thread_map(check_image, chosen, desc="reading images", unit=" images", disable=None)
    for index, (problem, ignored) in enumerate(checks):
        table.count_image(problem, ignored)
        if problem:
            table.bad.append(BadFile(chosen[index], problem, row=index * stride + 1))


def too_few_rows(
    table: DataCheck, batch_size: int, world_size: int, accum_freq: int = 1
) -> Iterator[str]:
    """Yields an error if a table has fewer rows than one step of training needs."""
    needed = world_size * (batch_size * accum_freq - 1) + 1  # ranks share the rows, rounded up
    if table.num_samples and table.num_trained < needed:  # those of a URL are unknown
        yield (
            f"{table.flag}: {table.data}: training reads {table.num_trained:,} of "
            f"{table.num_samples:,} rows, too few for --batch-size {batch_size:,} with "
            f"--accum-freq {accum_freq} on {world_size} rank(s); expected {needed:,} rows or a "
            "smaller batch"
        )


def chunks_of(path: str, columns: Columns, flag: str, dtype: type | None = None) -> Iterator:
    """Yields the rows of a table as data frames, after checking the header; InputError if it cannot
    be read.

    If `dtype` is str, numbers are texts.
    """
    # as in OpenCLIP: any separator, encoding and compression that pandas supports
    import pandas as pd

    with _readable(path, flag):
        (names,) = _first_rows(path, columns, 0)
        _check_header(path, names, columns)
        with pd.read_csv(
            path, **columns.pandas_options, chunksize=ROWS_AT_ONCE, dtype=dtype
        ) as chunks:
            for rows in chunks:
                # pandas takes extra values for row names
                if not isinstance(rows.index, pd.RangeIndex):
                    raise InputError(
                        f"{flag}: rows of {path} hold more values than its {len(rows.columns)} "
                        f"columns; expected quotes around a value that holds {columns.separator!r}"
                    )
                yield rows


@contextlib.contextmanager
def _readable(path: str, flag: str) -> Iterator[None]:
    if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would wait for ever
        raise InputError(f"{flag}: {path} is not a regular file; expected a table")
    try:
        with open(path, encoding="latin-1") as file:
            is_long = len(file.readline(MAX_HEADER)) == MAX_HEADER
        if is_long:
            raise InputError(
                f"{flag}: the first line of {path} is longer than {MAX_HEADER:,} characters; "
                "expected the names of its columns"
            )
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{flag}: there is no file {path}") from None
    except (OSError, ValueError) as error:
        advice = ": save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise InputError(
            f"{flag}: {path} is not a readable table ({reason(error)}){advice}"
        ) from error


def has_columns(path: str, columns: Columns) -> bool:
    """Returns whether OpenCLIP finds its columns in a table; True if it cannot be read here.

    Raises InputError for a separator that is no regular expression.
    """
    if not os.path.isfile(path):
        return True
    try:
        (names,) = _first_rows(path, columns, 0)
    except InputError:
        raise
    except (OSError, ValueError):
        return True
    return {columns.image, columns.caption} <= set(names)


def _check_header(path: str, names: list[str], columns: Columns) -> None:
    """Raises InputError for equal names, if a column is missing, or for a pair instead of names."""
    if os.path.isfile(columns.image):
        raise InputError(
            f"{path} has no header: its first row names the image {columns.image}; expected the "
            "names of the columns above it, such as filepath and title"
        )
    repeated = [name for name, number in Counter(names).items() if name and number > 1]
    if repeated:
        raise InputError(f"{path} has several columns '{repeated[0]}': rename all but one")
    for flag, key in (("--csv-img-key", columns.image), ("--csv-caption-key", columns.caption)):
        if key not in names:
            raise InputError(
                f"{flag}: {path} has no column '{key}'; its columns are {listed(names)} (separated "
                f"by {columns.separator!r})"
            )
