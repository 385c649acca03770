"""Renders templates of pages, tables, figures, progress and numbers as text."""

import base64
import io
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined, Template
from tqdm import tqdm

from .errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


def html_template(module: str, **filters: Callable) -> Template:
    """Returns the template beside a module's file, of the same name, which escapes all values and
    raises an error for undefined names."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters |= filters
    return environment.from_string(Path(module).with_suffix(".html").read_text(encoding="utf-8"))


STYLE = {  # of all figures
    "text.parse_math": False,  # a $ in words and names is not mathematics
    "figure.constrained_layout.use": True,
    "axes.titlesize": 9,
    "grid.alpha": 0.3,
}


def pyplot() -> ModuleType:
    """Returns matplotlib.pyplot with a backend that needs no display, and with STYLE."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update(STYLE)
    import matplotlib.pyplot

    return matplotlib.pyplot


def png(figure: "Figure") -> bytes:
    """Returns a figure as PNG, and closes it."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # it is drawn as a box
        figure.savefig(file, dpi=110, format="png", bbox_inches="tight")
    pyplot().close(figure)
    return file.getvalue()


def data_url(image: "bytes | Image", longest: int = 0) -> str:
    """Returns a data: URL of a PNG's content, or of an image as JPEG, reduced to `longest`
    pixels."""
    if isinstance(image, bytes):
        return f"data:image/png;base64,{base64.b64encode(image).decode()}"
    if longest:
        image = image.copy()
        image.thumbnail((longest, longest))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table; cells may contain vertical bars and line breaks."""
    lines = []
    for row in (heads, *rows):
        cells = [" ".join(cell.split()).replace("|", "\\|") for cell in row]
        lines.append("|" + "".join(f" {cell} |" if cell else " |" for cell in cells))
    lines.insert(1, "|" + "---|" * len(heads))
    return "\n".join(lines)


def markdown_text(value: object) -> str:
    """Returns a value as one line of Markdown that shows it as it is, without links or HTML."""
    line = printable(" ".join(str(value).split()))
    return re.sub(r"[\\`*<>#]|\](?=\()", r"\\\g<0>", line)


def progress_bar(title: str, total: int, **options) -> tqdm:
    """Returns a bar on stderr: without a terminal, a line every ten seconds."""
    seconds = 0.5 if sys.stderr.isatty() else 10
    return tqdm(desc=title, total=total, mininterval=seconds, miniters=0, **options)


def bytes_text(number: int) -> str:
    """Returns a number of bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 999.5 or unit == "TB":
            return f"{significant(number)} {unit}"
        number /= 1000


def significant(number: float, digits: int = 3) -> str:
    """Returns a number with so many significant digits, without an exponent if it is large:
    1,090 for 1094."""
    rounded = float(f"{number:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 ** (digits - 1) else f"{rounded:.{digits}g}"
