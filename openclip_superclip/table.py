"""A table, once for Markdown, HTML and CSV."""

import csv
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

ABSENT = "missing"
BAD = (ABSENT, "failed", "cut short", "preempted")


class Table(NamedTuple):
    """Cells of text under their heads; the note says how to read them."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    note: str = ""

    def markdown(self) -> str:
        """Returns the table in Markdown."""
        return "\n\n".join(filter(None, [f"**{self.title}**", markdown_table(self.heads, self.rows), self.note]))

    def html(self) -> str:
        """Returns the table in HTML."""
        heads = "".join(f"<th>{escape(head)}</th>" for head in self.heads)
        rows = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>\n" for row in self.rows)
        note = f"<p class=note>{escape(self.note)}</p>" if self.note else ""
        return f"<h3>{escape(self.title)}</h3>\n<table><tr>{heads}</tr>\n{rows}</table>\n{note}"

    def csv(self) -> str:
        """Returns heads and rows as CSV."""
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([self.heads, *self.rows])
        return file.getvalue()


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns cells of text under their heads in Markdown; a cell may hold a bar or a line break."""
    lines = ["|" + "".join(_markdown_cell(cell) for cell in line) for line in (heads, *rows)]
    lines.insert(1, "|" + "---|" * len(heads))
    return "\n".join(lines)


def _markdown_cell(cell: str) -> str:
    text = " ".join(cell.split()).replace("|", "\\|")
    return f" {text} |" if text else " |"


def _cell(cell: str) -> str:
    return f"<td{' class=bad' if cell in BAD else ''}>{escape(cell)}</td>"
