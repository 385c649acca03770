"""The figure of a study: its differences with their intervals."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from ..rendering import png, pyplot
from .paired_differences import PairedDifference
from .study_results import StudyResults

plt = pyplot()
ARM_COLOURS = ("#d1495b", "#4f6d7a", "#e08e45", "#2a9d8f", "#8a79af", "#7d7d7d")


def draw_study(results: StudyResults) -> bytes:
    """Returns the figure of a study's results as PNG: a panel for each measure, with a colour for
    each comparison and a place for each cell."""
    study = results.study
    measures = results.measures
    cells = study.cell_values
    size = (3.1 * len(measures) + 0.6, 3.8)
    figure, grid = plt.subplots(1, len(measures), figsize=size, squeeze=False)
    for axes, measure in zip(grid[0], measures, strict=True):
        for number, (arm, baseline) in enumerate(study.pairs):
            shift = 0.12 * (number - (len(study.pairs) - 1) / 2)
            draw_differences(
                axes,
                [index + shift for index in range(len(cells))],
                [results.differences(arm, baseline, cell)[measure] for cell in cells],
                ARM_COLOURS[number % len(ARM_COLOURS)],
                beside=0.04,
                label=f"{arm} − {baseline}",
            )
        names = ["" if cell is None else str(cell) for cell in cells]
        set_difference_axis(axes, names, results.title(measure))
        axes.set_xlabel((study.cell_field or "").replace("_", " "), fontsize=8)
    grid[0][0].set_ylabel("difference, points\n(bar: 95 % interval, dot: a seed)", fontsize=8)
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False)
    return png(figure, bbox_inches="tight")  # long names of arms are wider than one panel


def draw_differences(
    axes: Axes,
    xs: Sequence[float],
    differences: Sequence[PairedDifference],
    colour: str,
    beside: float = 0.0,
    **options,
) -> None:
    """Draws differences with their intervals, and their seeds `beside` these; the options are those
    of the line through the means."""
    for x, difference in zip(xs, differences, strict=True):
        interval = difference.interval or (difference.mean, difference.mean)
        axes.plot([x, x], interval, color=colour, linewidth=2.5)
        seeds = [x + beside] * len(difference)
        axes.plot(seeds, difference, ".", color="black", markersize=4, alpha=0.7)
    means = [difference.mean for difference in differences]
    axes.plot(xs, means, marker="o", color=colour, **options)


def set_difference_axis(axes: Axes, names: Sequence[str], title: str) -> None:
    """Sets the zero line, the names of the places and the title of a panel of differences."""
    axes.axhline(0, color="#999999", linewidth=1)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_title(title)
    axes.grid(axis="y")
