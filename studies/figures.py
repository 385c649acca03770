"""The figure of docs/results.md: `python studies/figures.py`."""

from itertools import groupby
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from verdicts import CONTROLS, HERE, Case, Comparison, cases, read_comparisons

COLOURS = {"gain": "#1a7f37", "loss": "#c62828", "no gain": "#8c8c8c", "open": "#d08700"}
CONTROL = "#4f6d7a"


def draw_cases(rows: list[tuple[Case, Comparison]], file: Path) -> None:
    """Draws the difference of each case with its 95 % interval, under the titles of the groups."""
    figure, axes = plt.subplots(figsize=(5, 0.4 * len(rows) + 2.5), layout="constrained")
    place = 0.0
    text = {
        "transform": axes.get_yaxis_transform(),
        "va": "center",
        "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1},
    }
    for group, members in groupby(rows, key=lambda row: row[0].group):
        axes.text(0, place, group, weight="bold", **text)
        place += 1
        for case, comparison in members:
            colour = COLOURS[comparison.verdict]
            if group == CONTROLS:
                colour = CONTROL
            name = f"{case.text}  (n = {comparison.n})"
            axes.text(0, place, name, fontsize=9, **text)
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
    drawn = [*COLOURS.items(), ("control", CONTROL)]
    verdicts = {"control" if case.group == CONTROLS else one.verdict for case, one in rows}
    drawn = [(name, colour) for name, colour in drawn if name in verdicts]
    handles = [plt.Line2D([], [], color=colour, marker="o") for _, colour in drawn]
    figure.legend(
        handles, [name for name, _ in drawn], loc="outside lower center", ncols=len(drawn)
    )
    figure.savefig(file, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    draw_cases(cases(read_comparisons()), HERE.parent / "docs/results.png")
