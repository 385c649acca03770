"""The figure of a WiSE-FT sweep: every score over α."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ..atomic_files import whole_file
from .results_table import scores_with_intervals

COLUMNS = 3


def draw_sweep(path: Path, alphas: list[float], models: list[list[dict]]) -> bool:
    """Draws a PNG, a panel a measure: the score over α, with its 95 % interval over the test samples.

    Returns whether there was a score to draw.

    Args:
        models: the results at each α.
    """
    rows = {label: found for label, found in scores_with_intervals(models).items() if all(found)}
    if not rows:
        return False
    columns = min(COLUMNS, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(3.3 * columns, 0.4 + 2.5 * lines), squeeze=False, layout="constrained"
    )
    for axes in list(grid.flat)[len(rows) :]:
        axes.set_axis_off()
    for axes, (label, found) in zip(grid.flat, rows.items(), strict=False):
        axes.plot(alphas, [score.value for score in found], marker="o", markersize=4, color="#d1495b")
        if all(score.interval for score in found):
            low, high = zip(*(score.interval for score in found), strict=True)
            axes.fill_between(alphas, low, high, alpha=0.2, color="#d1495b")
        axes.set_title(label if label.endswith(", cm") else f"{label}, %", fontsize=9)
        axes.set_xlabel("α: 0 released, 1 tuned")
        axes.grid(alpha=0.3)
    with whole_file(path) as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)
    return True
