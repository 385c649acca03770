"""Tables of Markdown."""

from collections.abc import Iterable, Sequence


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns cells of text under their heads in Markdown; a cell may hold a bar or a line break."""
    lines = ["|" + "".join(_markdown_cell(cell) for cell in line) for line in (heads, *rows)]
    lines.insert(1, "|" + "---|" * len(heads))
    return "\n".join(lines)


def _markdown_cell(cell: str) -> str:
    text = " ".join(cell.split()).replace("|", "\\|")
    return f" {text} |" if text else " |"
