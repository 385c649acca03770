"""The figure of docs/results.md: `python studies/figures.py`."""

from itertools import groupby
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from verdicts import CASES, HERE, find, read_comparisons

COLOURS = {
    "gain": "#1a7f37",
    "loss": "#c62828",
    "no gain": "#8c8c8c",
    "open": "#d08700",
    "no verdict": "#4f6d7a",
}


def draw_cases(file: Path) -> None:
    """Draws the difference of each case with its 95 % interval, under the titles of the groups.
    Only primary comparisons have a verdict."""
    comparisons, _ = read_comparisons()
    figure, axes = plt.subplots(figsize=(5, 0.4 * len(CASES) + 2.5), layout="constrained")
    place = 0.0
    text = {
        "transform": axes.get_yaxis_transform(),
        "va": "center",
        "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1},
    }
    for group, cases in groupby(CASES, key=lambda case: case.group):
        axes.text(0, place, group, weight="bold", **text)
        place += 1
        for case in cases:
            comparison = find(comparisons, case.study, case.comparison, case.measure)
            colour = COLOURS[comparison.verdict if comparison.is_primary else "no verdict"]
            axes.text(0, place, f"{case.text}  (n = {comparison.n})", fontsize=9, **text)
            place += 0.6
            axes.plot(comparison.interval, [place, place], color=colour, linewidth=2.5)
            axes.plot(comparison.mean, place, "o", color=colour)
            place += 0.9
        place += 0.5
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks([])
    axes.set_ylim(place - 0.8, -0.8)
    axes.set_xlabel("difference from training without the class loss,\npoints (95 % interval)")
    axes.grid(axis="x", alpha=0.4)
    axes.spines[["top", "right", "left"]].set_visible(False)
    handles = [plt.Line2D([], [], color=colour, marker="o") for colour in COLOURS.values()]
    figure.legend(handles, list(COLOURS), loc="outside lower center", ncols=3)
    figure.savefig(file, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    draw_cases(HERE.parent / "docs/results.png")
