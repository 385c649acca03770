"""study.png: the paired differences with their intervals, a panel a measure; over the cells where there are some."""

import io

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = ("#d1495b", "#4f6d7a", "#e08e45", "#2a9d8f", "#8a79af", "#7d7d7d")


def draw(results) -> bytes:
    """Returns the figure of a study's results as PNG."""
    study, measures = results.study, results.measures
    figure, grid = plt.subplots(
        1, len(measures), figsize=(3.1 * len(measures) + 0.6, 3.8), layout="constrained", squeeze=False
    )
    for axes, measure in zip(grid[0], measures, strict=True):
        for place, (arm, baseline) in enumerate(study.pairs):
            found = [results.difference(arm, baseline, cell, measure) for cell in study.cell_values]
            shift, colour = 0.12 * (place - (len(study.pairs) - 1) / 2), COLOURS[place % 6]
            places, means = [x + shift for x in range(len(found))], [difference.mean for difference in found]
            bounds = [difference.interval or (difference.mean, difference.mean) for difference in found]
            for x, difference, interval in zip(places, found, bounds, strict=True):
                axes.plot([x, x], interval, color=colour, linewidth=2)
                beside = [x + 0.04] * len(difference.values)
                axes.plot(beside, difference.values, ".", color="black", markersize=4, alpha=0.6)
            if len(found) > 1:
                lows, highs = zip(*bounds, strict=True)
                axes.fill_between(places, lows, highs, color=colour, alpha=0.15, linewidth=0)
            line = "-" if len(found) > 1 else ""
            axes.plot(places, means, marker="o", linestyle=line, color=colour, label=f"{arm} − {baseline}")
        axes.axhline(0, color="#999999", linewidth=1)
        axes.set_title(results.title(measure), fontsize=9)
        cells = list(map(str, study.cell_values)) if study.cells else []
        axes.set_xticks(range(len(cells)), cells)
        axes.set_xlim(-0.5, len(study.cell_values) - 0.5)
        axes.set_xlabel((study.cell_field or "").replace("_", " "), fontsize=8)
        axes.grid(axis="y", alpha=0.3)
    grid[0][0].set_ylabel("difference, points (bar: 95 % interval, dot: a seed)", fontsize=8)
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png")
    plt.close(figure)
    return file.getvalue()
