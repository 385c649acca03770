"""The figure of a study: its differences with their intervals."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from ...rendering import png, pyplot
from ..reports.paired_differences import PairedDifference
from .study_results import StudyResults

plt = pyplot()
ARM_COLOURS = ("#d1495b", "#4f6d7a", "#e08e45", "#2a9d8f", "#8a79af", "#7d7d7d")


def draw_study(results: StudyResults) -> bytes:
    """Returns the figure of a study's results as PNG: a panel for each measure."""
    study = results.study
    measures = results.measures
    size = (3.1 * len(measures) + 0.6, 3.8)
    figure, grid = plt.subplots(1, len(measures), figsize=size, squeeze=False)
    for axes, measure in zip(grid[0], measures, strict=True):
        for number in range(len(study.pairs)):
            _draw_comparison(axes, results, number, measure)
        cells = list(map(str, study.cell_values)) if study.cells else []
        set_difference_axis(axes, cells, len(study.cell_values), results.title(measure))
        axes.set_xlabel((study.cell_field or "").replace("_", " "), fontsize=8)
    grid[0][0].set_ylabel(
        "difference, points or the title's unit\n(bar: 95 % interval, dot: a seed)", fontsize=8
    )
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return png(figure, bbox_inches="tight")  # long names of arms are wider than one panel


def _draw_comparison(axes: Axes, results: StudyResults, number: int, measure: str) -> None:
    """Draws a measure's differences of one of the study's comparisons in each cell."""
    study = results.study
    arm, baseline = study.pairs[number]
    colour = ARM_COLOURS[number % len(ARM_COLOURS)]
    shift = 0.12 * (number - (len(study.pairs) - 1) / 2)
    xs = []
    intervals = []
    means = []
    for cell_number, cell in enumerate(study.cell_values):
        difference = results.difference(arm, baseline, cell, measure)
        xs.append(cell_number + shift)
        intervals.append(draw_difference(axes, xs[-1], difference, colour, 0.04))
        means.append(difference.mean)
    if len(xs) > 1:
        lows, highs = zip(*intervals, strict=True)
        axes.fill_between(xs, lows, highs, color=colour, alpha=0.15, linewidth=0)
    axes.plot(
        xs,
        means,
        marker="o",
        linestyle="-" if len(xs) > 1 else "",
        color=colour,
        label=f"{arm} − {baseline}",
    )


def draw_difference(
    axes: Axes, x: float, difference: PairedDifference, colour: str, beside: float = 0.0
) -> tuple[float, float]:
    """Draws an interval, with its seeds `beside` it, and returns the interval."""
    interval = difference.interval or (difference.mean, difference.mean)
    axes.plot([x, x], interval, color=colour, linewidth=2.5)
    seeds = [x + beside] * len(difference.values)
    axes.plot(seeds, difference.values, ".", color="black", markersize=4, alpha=0.7)
    return interval


def set_difference_axis(axes: Axes, names: Sequence[str], num_places: int, title: str) -> None:
    """Sets the zero line, the names of the places and the title of a panel of differences."""
    axes.axhline(0, color="#999999", linewidth=1)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_xlim(-0.5, num_places - 0.5)
    axes.set_title(title)
    axes.grid(axis="y")
