"""The figure of the scores of runs and models: a panel for each measure."""

import math

from ..rendering import png, pyplot
from .score_table import ScoreTable, title

COLUMNS = 3
MOST_PANELS = 12


def draw_scores(table: ScoreTable) -> bytes:
    """Returns the first scores of a table as PNG, with their intervals."""
    plt = pyplot()
    measures = table.measures[:MOST_PANELS]
    columns = min(COLUMNS, len(measures))
    num_rows = math.ceil(len(measures) / columns)
    size = (3 * columns + 1.5, (0.28 * len(table.rows) + 0.8) * num_rows + 0.4)
    figure, grid = plt.subplots(num_rows, columns, figsize=size, squeeze=False, sharey=True)
    for axes in grid.flat[len(measures) :]:
        axes.set_axis_off()
    for axes, measure in zip(grid.flat, measures, strict=False):
        for place, row in enumerate(table.rows):
            score = row.scores.get(measure)
            if score is None:
                continue
            low, high = score.interval or (score.value, score.value)
            axes.plot([low, high], [place, place], color="#d1495b", linewidth=2.5, alpha=0.5)
            axes.plot(score.value, place, "o", color="#d1495b")
        axes.set_title(title(measure))
        axes.set_yticks(range(len(table.rows)), [row.name for row in table.rows], fontsize=8)
        axes.set_ylim(len(table.rows) - 0.5, -0.5)
        axes.margins(x=0.1)
        axes.grid(axis="x")
    if len(measures) < len(table.measures):
        figure.suptitle(f"the first {len(measures)} of {len(table.measures)} scores", fontsize=9)
    return png(figure)
