"""How methods and numbers look in every figure of a report."""

import io
import math

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from .comparison import Comparison, Series, number

COLOURS = {
    "clip": "#7d7d7d", "superclip": "#d1495b", "siglip": "#4f6d7a", "supersiglip": "#e08e45", "flip": "#8a79af",
    "superflip": "#2a9d8f",
}  # fmt: skip
MOST_PANELS, COLUMNS = 12, 4  # of a figure with a panel a score
STYLES = ["-", "--", "-.", ":"]  # of the series of one method


def style(comparison: Comparison, series: Series) -> dict:
    """Returns the colour and the line of a series."""
    same = [other for other in comparison.series if other.method == series.method]
    return {
        "color": COLOURS.get(series.method, "#333333"),
        "linestyle": STYLES[same.index(series) % len(STYLES)],
    }


def short(value: float, _=None) -> str:
    """Returns the label of a number of samples on an axis."""
    for factor, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:g}{letter}"
    return f"{value:g}"


def batch(size: int) -> str:
    """Returns 16K for 16,384, as the paper writes it."""
    return f"{size // 1024}K" if size % 1024 == 0 else number(size)


def panel_grid(num_panels: int) -> tuple[Figure, np.ndarray]:
    """Returns a figure with so many panels, a few in a row, and its axes; those that are too many are not shown."""
    rows, columns = math.ceil(num_panels / COLUMNS), min(num_panels, COLUMNS)
    size = (max(6.5, min(10.4, 3.3 * columns)), 0.9 + 2.6 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat[num_panels:]:
        axes.set_axis_off()
    return figure, grid


def legend(figure: Figure, grid, ncols: int) -> None:
    """Adds one legend for all axes, above them."""
    handles = {}
    for axes in grid.flat:
        handles |= {name: handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    names = sorted(handles, key=lambda name: "the paper" in name)  # ours first
    figure.legend(
        [handles[name] for name in names], names, loc="outside upper center", ncols=ncols, frameon=False, fontsize=9
    )


def png(figure: Figure) -> bytes:
    """Returns a figure as PNG, and closes it."""
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png")
    plt.close(figure)
    return file.getvalue()
