"""The figures of `superclip report`: scores over the batch size, and losses over the samples."""

import math
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import EngFormatter

from ..rendering import png, pyplot
from .comparable_runs import Comparison, Group, Series
from .run_scores import LABELS

plt = pyplot()
COLOURS = {
    "clip": "#7d7d7d",
    "superclip": "#d1495b",
    "siglip": "#4f6d7a",
    "supersiglip": "#e08e45",
    "flip": "#8a79af",
    "superflip": "#2a9d8f",
}
STYLES = ["-", "--", "-.", ":"]  # of the series of one method
WIDTH = 10.4  # inches: the width of a report's page
# of a figure with a panel for each score
MOST_PANELS = 12
COLUMNS = 4
LOSSES = ("contrastive_loss", "class_loss")


class Figure(NamedTuple):
    """A PNG of a report, and its caption."""

    file: str
    png: bytes
    describes: str


def draw_batch_sizes(comparison: Comparison, file: str) -> Figure | None:
    """Returns scores over the batch size; None without scores, or for one batch size, the paper's
    included."""
    sizes = {group.batch_size for group in comparison.groups}
    for series in comparison.series:
        sizes |= {point.batch_size for point in comparison.paper_of(series)}
    sizes = sorted(sizes)
    keys = comparison.score_keys[:MOST_PANELS]
    if not keys or len(sizes) < 2:
        return None
    rows = math.ceil(len(keys) / COLUMNS)
    drawing, grid = _panels(rows, min(len(keys), COLUMNS), 2.6)
    for axes in grid.flat[len(keys) :]:
        axes.set_axis_off()
    for axes, key in zip(grid.flat, keys, strict=False):
        for line in _lines(comparison, key):
            axes.errorbar(marker="o", markersize=5, capsize=3, **line)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, list(map(_batch, sizes)))
        axes.minorticks_off()
        axes.set_xlabel("batch size")
        axes.grid()
        axes.margins(x=0.08, y=0.12)
        label = LABELS.get(key, key)
        axes.set_title(label if "RMSE" in label else f"{label}, %")
    _add_legend(drawing, grid, ncols=2)
    return Figure(file, png(drawing), "Scores over the batch size")


def _panels(rows: int, columns: int, height: float) -> tuple[Drawing, np.ndarray]:
    """Returns a figure of a page's width, and its axes [rows, columns]."""
    size = (WIDTH, 0.9 + height * rows)
    return plt.subplots(rows, columns, figsize=size, squeeze=False)


def _add_legend(drawing: Drawing, grid: np.ndarray, ncols: int) -> None:
    """Adds one legend for all axes, above them."""
    handles = {}
    for axes in grid.flat:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles[name] = handle
    drawing.legend(
        list(handles.values()),
        list(handles),
        loc="outside upper center",
        ncols=ncols,
        frameon=False,
        fontsize=9,
    )


def _lines(comparison: Comparison, key: str) -> list[dict]:
    """Returns a score over the batch size, as arguments of matplotlib's errorbar: a line for each
    series, and then the paper's."""
    ours = []
    theirs = []
    for series in comparison.series:
        look = _look(comparison, series)
        scores = {
            group.batch_size: group.score(key)
            for group in comparison.groups
            if group.series == series and group.score(key)
        }
        if scores:
            line = {
                "x": list(scores),
                "y": [score.mean for score in scores.values()],
                "yerr": [score.std or 0.0 for score in scores.values()],
                "label": series.name,
            }
            ours.append(line | look)
        points = [point for point in comparison.paper_of(series) if point.key == key]
        if points:
            without_training = Series(series.method, series.variant)  # which is ours
            line = {
                "x": [point.batch_size for point in points],
                "y": [point.value for point in points],
                "label": f"{without_training.name}, the paper",
                "markerfacecolor": "white",
                "alpha": 0.8,
            }
            theirs.append(line | look | {"linestyle": ":"})
    return ours + theirs


def _look(comparison: Comparison, series: Series) -> dict:
    """Returns the colour and the line style of a series."""
    same = [other for other in comparison.series if other.method == series.method]
    return {
        "color": COLOURS[series.method],
        "linestyle": STYLES[same.index(series) % len(STYLES)],
    }


def _batch(size: int) -> str:
    """Returns 16K for 16,384, as the paper writes it."""
    return f"{size // 1024}K" if size % 1024 == 0 else f"{size:,}"


def draw_losses(comparison: Comparison, file: str) -> Figure | None:
    """Returns the losses over the samples seen, a row for each batch size; None if no run has
    logged a loss."""
    points = [point for run in comparison.runs for point in run.points]
    losses = [loss for loss in LOSSES if any(loss in point for point in points)]
    sizes = sorted({run.batch_size for run in comparison.runs if run.points})
    if not losses:
        return None
    drawing, grid = _panels(len(sizes), len(losses), 2.4)
    for row, batch_size in zip(grid, sizes, strict=True):
        for axes, loss in zip(row, losses, strict=True):
            for group in comparison.groups:
                if group.batch_size == batch_size:
                    _draw_loss(axes, group, loss, _look(comparison, group.series))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.set_xlabel("samples seen")
            axes.grid()
            axes.margins(x=0.02)
            axes.set_title(f"{loss.replace('_', ' ')}, batch {_batch(batch_size)}")
    _add_legend(drawing, grid, ncols=4)
    return Figure(file, png(drawing), "Losses over the samples seen")


def _draw_loss(axes: Axes, group: Group, loss: str, look: dict) -> None:
    """Draws the loss of runs that differ by the seed; a cross marks the end of unfinished ones."""
    for run in group.runs:
        points = [point for point in run.points if loss in point]
        samples = [point["samples"] for point in points]
        losses = [point[loss] for point in points]
        axes.plot(samples, losses, label=group.series.name, linewidth=1.3, alpha=0.8, **look)
        if not run.is_finished:
            axes.plot(samples[-1:], losses[-1:], "x", color="black", label="ended early")
