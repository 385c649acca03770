"""The figure of a study: the scores of its arms, and their differences with intervals."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from ..rendering import png, pyplot
from .paired_differences import PairedDifference
from .study_results import StudyResults

plt = pyplot()
ARM_COLOURS = ("#8c8c8c", "#d1495b", "#4f6d7a", "#e08e45", "#2a9d8f", "#8a79af")
NARROWEST = 5.6  # inches: readable on a phone


class Place(NamedTuple):
    """Where a panel shows a measure of a cell of the study."""

    name: str
    measure: str
    cell: object


def draw_study(results: StudyResults) -> bytes:
    """Returns the figure of a study's results as PNG: scores above differences, of all measures in
    one panel, or in a panel for each measure if the study has several cells."""
    study = results.study
    columns = _columns(results)
    width = max(NARROWEST, 3.1 * len(columns) + 0.6)
    figure, grid = plt.subplots(2, len(columns), figsize=(width, 6.4), squeeze=False)
    for (scores, differences), (title, places) in zip(grid.T, columns.items(), strict=True):
        _draw_scores(scores, results, places)
        scores.set_title(title)
        for number, (arm, baseline) in enumerate(study.pairs):
            shift = 0.12 * (number - (len(study.pairs) - 1) / 2)
            _draw_differences(
                differences,
                [index + shift for index in range(len(places))],
                [results.differences(arm, baseline, at.cell)[at.measure] for at in places],
                ARM_COLOURS[list(study.arms).index(arm) % len(ARM_COLOURS)],
                label=f"{arm} − {baseline}",
            )
        differences.axhline(0, color="#999999", linewidth=1)
        for axes in (scores, differences):
            axes.set_xticks(range(len(places)), [at.name for at in places], fontsize=9)
            axes.set_xlim(-0.5, len(places) - 0.5)
            axes.grid(axis="y")
        if study.cell_field:
            differences.set_xlabel(study.cell_field.replace("_", " "), fontsize=9)
    grid[0][0].set_ylabel("score (dot: a seed)", fontsize=9)
    grid[1][0].set_ylabel(f"difference, points (bar: {results.percent} interval)", fontsize=9)
    for axes in grid[:, 0]:
        axes.legend(frameon=False, fontsize=8)
    return png(figure)


def _columns(results: StudyResults) -> dict[str, list[Place]]:
    """Returns the places of each column of panels, by its title."""
    cells = results.study.cell_values
    if len(cells) == 1:
        names = [measure.replace("_to_", "→").replace("_", "\n") for measure in results.measures]
        pairs = zip(names, results.measures, strict=True)
        return {"": [Place(name, measure, cells[0]) for name, measure in pairs]}
    return {
        results.title(measure): [Place(str(cell), measure, cell) for cell in cells]
        for measure in results.measures
    }


def _draw_scores(axes: Axes, results: StudyResults, places: Sequence[Place]) -> None:
    """Draws a bar for each arm's mean score, and a dot for each seed."""
    arms = list(results.study.arms)
    width = 0.8 / len(arms)
    for number, arm in enumerate(arms):
        colour = ARM_COLOURS[number % len(ARM_COLOURS)]
        for index, at in enumerate(places):
            scores = results.spread(arm, at.cell, at.measure)
            x = index + (number - (len(arms) - 1) / 2) * width
            axes.bar(x, scores.mean, width * 0.92, color=colour, label="" if index else arm)
            axes.plot([x] * len(scores), scores, ".", color="black", markersize=4)


def _draw_differences(
    axes: Axes,
    xs: Sequence[float],
    differences: Sequence[PairedDifference],
    colour: str,
    label: str,
) -> None:
    """Draws the means of differences, their intervals and, beside these, their seeds."""
    for x, difference in zip(xs, differences, strict=True):
        interval = difference.interval or (difference.mean, difference.mean)
        axes.plot([x, x], interval, color=colour, linewidth=2.5)
        seeds = [x + 0.04] * len(difference.values)
        axes.plot(seeds, difference.values, ".", color="black", markersize=4, alpha=0.7)
    means = [difference.mean for difference in differences]
    axes.plot(xs, means, "o", color=colour, label=label)
