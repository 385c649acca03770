"""The figure of a run's course: its scores over the samples seen, of runs whose checkpoints were evaluated."""

import math

import matplotlib.pyplot as plt

from .comparison import Comparison
from .figure_style import batch, legend, png, short, style
from .reported_run import ReportedRun
from .run_scores import in_order, label

MOST_PANELS = 12
COLUMNS = 4


def draw_course(comparison: Comparison) -> bytes | None:
    """Returns the figure as PNG, None where no run has a score at two epochs."""
    panels = _panels(comparison)[:MOST_PANELS]
    if not panels:
        return None
    rows, columns = math.ceil(len(panels) / COLUMNS), min(len(panels), COLUMNS)
    size = (max(6.5, min(10.4, 3.3 * columns)), 0.9 + 2.6 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    for axes, key in zip(grid.flat, panels, strict=False):
        for (series, batch_size), runs in comparison.cells.items():
            name = series.name if len(comparison.batch_sizes) == 1 else f"{series.name}, batch {batch(batch_size)}"
            for points in (_points(run, key) for run in runs):
                if len(points) > 1:
                    look = style(comparison, series)
                    axes.plot(*zip(*points, strict=True), marker=".", alpha=0.8, label=name, **look)
        axes.xaxis.set_major_formatter(short)
        axes.set_xlabel("samples seen")
        axes.set_title(f"{label(key)}, %", fontsize=9)
        axes.grid(alpha=0.3)
    legend(figure, grid, ncols=2)
    return png(figure)


def _panels(comparison: Comparison) -> list[str]:
    keys = [key for run in comparison.runs for scores in run.course.values() for key in scores]
    return [key for key in in_order(keys) if any(len(_points(run, key)) > 1 for run in comparison.runs)]


def _points(run: ReportedRun, key: str) -> list[tuple[float, float]]:
    """Returns (samples seen, score) at every epoch that has it."""
    if not run.epochs:
        return []
    return [(run.samples * epoch / run.epochs, scores[key]) for epoch, scores in run.course.items() if key in scores]
