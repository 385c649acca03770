"""A table of a report, once for Markdown, HTML and CSV: people read 12.4 ± 0.9, programs two numbers."""

import csv
import io
from collections.abc import Iterable
from typing import NamedTuple

from ..seed_statistics import PairedDifference, Spread
from ..table import markdown_table

ABSENT = "missing"
NOTHING = "–"
ALSO = ("standard deviation", "95 % interval from", "95 % interval to")  # the numbers of a cell after its first


class Numeric(NamedTuple):
    """A cell that is about a number: as people read it, and its numbers, none where there is nothing."""

    text: str
    numbers: tuple[float | None, ...] = ()  # with what of ALSO it has

    def __str__(self) -> str:
        return self.text


Cell = str | Numeric


def no_number(text: str = NOTHING) -> Numeric:
    """Returns a cell where a number might have been."""
    return Numeric(text)


def count(value: int) -> Numeric:
    """Returns a whole number."""
    return Numeric(f"{value:,}", (value,))


def decimal(value: float, format: str) -> Numeric:
    """Returns a number that people read in `format`."""
    return Numeric(f"{value:{format}}", (value,))


def mean(spread: Spread | None) -> Numeric:
    """Returns a mean with its standard deviation."""
    return Numeric(str(spread), (spread.mean, spread.std)) if spread else no_number()


def paired(difference: PairedDifference | None) -> Numeric:
    """Returns the mean of differences by seed, with their deviation and the mean's interval."""
    if difference is None:
        return no_number()
    return Numeric(str(difference), (difference.mean, difference.std, *(difference.interval or (None, None))))


class ReportTable(NamedTuple):
    """Cells under their heads; the note says how to read them."""

    title: str
    heads: list[str]
    rows: list[list[Cell]]
    note: str = ""

    def markdown(self) -> str:
        """Returns the table in Markdown."""
        rows = [[str(cell) for cell in row] for row in self.rows]
        return "\n\n".join(filter(None, [f"**{self.title}**", markdown_table(self.heads, rows), self.note]))

    def csv(self) -> str:
        """Returns heads and rows as CSV, with columns of their own for standard deviations and intervals."""
        columns = [*zip(*self.rows, strict=True)] or [()] * len(self.heads)
        widths = [max((len(_values(cell)) for cell in column), default=1) or 1 for column in columns]
        heads = [
            [head, *(f"{head}, {one}" for one in ALSO)][:width] for head, width in zip(self.heads, widths, strict=True)
        ]
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_flat(heads))
        for row in self.rows:
            values = map(_values, row)
            writer.writerow(_flat([*cell, *[None] * (n - len(cell))] for cell, n in zip(values, widths, strict=True)))
        return file.getvalue()


def _values(cell: Cell) -> tuple:
    if isinstance(cell, str):
        return (cell,)
    return tuple(round(number, 6) if isinstance(number, float) else number for number in cell.numbers)


def _flat(parts: Iterable[Iterable]) -> list:
    return [value for part in parts for value in part]
