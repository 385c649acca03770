"""The batch-size figure: scores over the batch size, each method's mean and seeds, and the paper's curve beside it."""

import math

import matplotlib.pyplot as plt

from .comparison import Comparison
from .figure_style import batch, legend, png, style
from .run_scores import label

MOST_PANELS = 12
COLUMNS = 4


def draw_batch_sizes(comparison: Comparison) -> bytes | None:
    """Returns the figure as PNG, None where no score has two batch sizes, or one beside the paper's curve."""
    panels = _panels(comparison)[:MOST_PANELS]
    if not panels:
        return None
    rows, columns = math.ceil(len(panels) / COLUMNS), min(len(panels), COLUMNS)
    size = (max(6.5, min(10.4, 3.3 * columns)), 0.9 + 2.6 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes, key in zip(grid.flat, panels, strict=False):
        _draw(axes, comparison, key)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    legend(figure, grid, ncols=2)
    return png(figure)


def _panels(comparison: Comparison) -> list[str]:
    return [key for key in comparison.score_keys if len(_sizes(comparison, key)) > 1]


def _sizes(comparison: Comparison, key: str) -> list[int]:
    """Returns the batch sizes that a panel shows: ours and those of the paper's curves beside ours."""
    ours = {
        size for series in comparison.series for size in comparison.batch_sizes if comparison.score(series, size, key)
    }
    return sorted(
        ours | {point.batch_size for series in comparison.series for point in _paper(comparison, series, key)}
    )


def _paper(comparison: Comparison, series, key: str) -> list:
    points = [p for p in comparison.paper if (p.method, p.variant, p.key) == (series.method, dict(series.variant), key)]
    return sorted(points, key=lambda point: point.batch_size)


def _draw(axes, comparison: Comparison, key: str) -> None:
    for series in comparison.series:
        look = style(comparison, series)
        found = [(size, comparison.score(series, size, key)) for size in comparison.batch_sizes]
        found = [(size, spread) for size, spread in found if spread]
        if found:
            sizes, means = [size for size, _ in found], [spread.mean for _, spread in found]
            errors = [spread.std or 0.0 for _, spread in found]
            axes.errorbar(sizes, means, yerr=errors, marker="o", markersize=5, capsize=3, label=series.name, **look)
        for size, spread in found:
            if len(spread.values) > 1:
                axes.plot([size] * len(spread.values), spread.values, ".", color="black", markersize=3, zorder=3)
        paper = _paper(comparison, series, key)
        if paper:
            told = "read off Figure 4" if any(point.read_off for point in paper) else paper[0].source
            axes.plot(
                [p.batch_size for p in paper], [p.value for p in paper], marker="o", markerfacecolor="white",
                color=look["color"], linestyle=":", alpha=0.8, label=f"{series.name}, the paper ({told})",
            )  # fmt: skip
    sizes = _sizes(comparison, key)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [batch(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("batch size")
    axes.set_title(f"{label(key)}, %", fontsize=9)
    axes.grid(alpha=0.3)
    axes.margins(x=0.08, y=0.12)


def about(comparison: Comparison) -> str:
    """Returns how the figure is to be read, "" where there is nothing to say."""
    panels = _panels(comparison)
    points = [
        p for series in comparison.series for key in panels[:MOST_PANELS] for p in _paper(comparison, series, key)
    ]
    told = []
    if any(point.read_off for point in points):
        printed = ", ".join(batch(size) for size in sorted({p.batch_size for p in points if not p.read_off}))
        tables = f"; those of batch {printed} stand in its tables" if printed else ""
        told.append(f"The paper's points are read off its Figure 4 (±0.05){tables}.")
    if len(panels) > MOST_PANELS:
        told.append(f"Drawn are {MOST_PANELS} of {len(panels)} scores; the table has all.")
    return " ".join(told)
