"""The figure of a run's course: its scores over the samples seen, of runs whose checkpoints were evaluated."""

from .comparison import Comparison
from .figure_style import MOST_PANELS, batch, legend, panel_grid, png, short, style
from .reported_run import ReportedRun
from .run_scores import in_order, label


def draw_course(comparison: Comparison) -> bytes | None:
    """Returns the figure as PNG, None where no run has a score at two epochs."""
    panels = _panels(comparison)[:MOST_PANELS]
    if not panels:
        return None
    figure, grid = panel_grid(len(panels))
    for axes, key in zip(grid.flat, panels, strict=False):
        for (series, batch_size), runs in comparison.cells.items():
            name = comparison.told(series, batch_size)
            name = name if len(comparison.batch_sizes) == 1 else f"{name}, batch {batch(batch_size)}"
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


def about(comparison: Comparison) -> str:
    """Returns how much of the course the figure leaves out, "" where it shows all."""
    number = len(_panels(comparison))
    return f"Drawn are {MOST_PANELS} of {number} scores." if number > MOST_PANELS else ""


def _panels(comparison: Comparison) -> list[str]:
    keys = [key for run in comparison.runs for scores in run.course.values() for key in scores]
    return [key for key in in_order(keys) if any(len(_points(run, key)) > 1 for run in comparison.runs)]


def _points(run: ReportedRun, key: str) -> list[tuple[float, float]]:
    """Returns (samples seen, score) at every epoch that has it."""
    if not run.epochs:
        return []
    return [(run.samples * epoch / run.epochs, scores[key]) for epoch, scores in run.course.items() if key in scores]
