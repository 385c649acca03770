"""The figure of a comparison's losses: contrastive and class, all methods together, a column a batch size."""

import matplotlib.pyplot as plt

from .comparison import Comparison
from .figure_style import batch, legend, png, short, style
from .reported_run import FINISHED, ReportedRun

LOSSES = ("contrastive_loss", "class_loss")
MOST_POINTS = 150  # of a curve: longer ones are averaged


def draw_curves(comparison: Comparison) -> bytes | None:
    """Returns the figure as PNG, None where no run has logged a loss."""
    logged = [name for name in LOSSES if any(name in point for run in comparison.runs for point in run.points)]
    sizes = [
        size for size in comparison.batch_sizes if any(run.points for run in comparison.runs if run.batch_size == size)
    ]
    if not logged or not sizes:
        return None
    along = len(sizes) == 1  # one batch size: the losses stand beside each other
    rows, columns = (1, len(logged)) if along else (len(logged), len(sizes))
    figure, grid = plt.subplots(
        rows, columns, figsize=(_width(columns), 0.9 + 2.4 * rows), sharex=True,
        sharey=False if along else "row", squeeze=False, layout="constrained",
    )  # fmt: skip
    for column, size in enumerate(sizes):
        for row, loss in enumerate(logged):
            axes = grid[0][row] if along else grid[row][column]
            _draw(axes, comparison, size, loss)
            if along or row == 0:
                axes.set_title(f"batch {batch(size)}", fontsize=10)
            if along or column == 0:
                axes.set_ylabel(loss.replace("_", " "))
            if along or row == rows - 1:
                axes.set_xlabel("samples seen")
    legend(figure, grid, ncols=4)
    return png(figure)


def _width(columns: int) -> float:
    """Returns inches: no more than a page has, unless there are many columns."""
    return max(6.5, min(10.4, 1.2 + 3.1 * columns), 1.7 * columns)


def _draw(axes, comparison: Comparison, batch_size: int, loss: str) -> None:
    for series in comparison.series:
        for run in comparison.cells.get((series, batch_size), []):
            points = _averaged([(point["samples"], point[loss]) for point in run.points if loss in point])
            if not points:
                continue
            x, y = zip(*points, strict=True)
            axes.plot(x, y, label=comparison.told(series), linewidth=1.3, alpha=0.8, **style(comparison, series))
            if run.state != FINISHED:
                axes.plot(x[-1], y[-1], "x", color="black", markersize=7, label="ended early")
    axes.xaxis.set_major_formatter(short)
    axes.grid(alpha=0.3)
    axes.margins(x=0.02)


def _averaged(points: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """Returns the means of as many neighbouring points as it takes to be at most MOST_POINTS."""
    step = -(-len(points) // MOST_POINTS) or 1
    parts = [points[start : start + step] for start in range(0, len(points), step)]
    return [tuple(sum(values) / len(part) for values in zip(*part, strict=True)) for part in parts]


def not_drawn(comparison: Comparison) -> list[ReportedRun]:
    """Returns the runs whose logs show no loss."""
    return [run for run in comparison.runs if not any(loss in point for point in run.points for loss in LOSSES)]
