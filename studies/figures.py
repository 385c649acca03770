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
    figure, axes = plt.subplots(figsize=(9, 0.36 * len(rows) + 2.2), layout="constrained")
    place, places, names = 0, [], []
    for group, members in groupby(rows, key=lambda row: row[0].group):
        places.append(place)
        names.append(group)
        for case, comparison in members:
            place += 1
            colour = COLOURS[comparison.verdict]
            if group == CONTROLS:
                colour = CONTROL
            axes.plot(comparison.interval, [place, place], color=colour, linewidth=2.5)
            axes.plot(comparison.mean, place, "o", color=colour)
            places.append(place)
            names.append(f"{case.text}  (n = {comparison.n})")
        place += 1.3
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(places, names)
    for label in axes.get_yticklabels():
        if label.get_text() in {case.group for case, _ in rows}:
            label.set_weight("bold")
    axes.set_ylim(place - 0.3, -0.8)
    axes.set_xlabel("difference from training without the class loss, points (95 % interval)")
    axes.grid(axis="x", alpha=0.4)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    drawn = [*COLOURS.items(), ("control", CONTROL)]
    drawn = [(name, colour) for name, colour in drawn if name != "loss"]
    handles = [plt.Line2D([], [], color=colour, marker="o") for _, colour in drawn]
    figure.legend(
        handles, [name for name, _ in drawn], loc="outside lower center", ncols=len(drawn)
    )
    figure.savefig(file, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    draw_cases(cases(read_comparisons()), HERE.parent / "docs/results.png")
