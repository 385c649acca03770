"""demo.png: the measures of both methods, their differences with intervals, and pictures with what each model says."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ..atomic_files import whole_file
from ..seed_statistics import PairedDifference

COLOURS = {"CLIP": "#8c8c8c", "SuperCLIP": "#d1495b"}


def draw(path: Path, scores: dict[str, dict[str, list[float]]], pictures: Sequence, title: str) -> None:
    """Draws the demo's figure.

    Args:
        scores: by method and measure, in percent, a score a seed.
        pictures: (image, true names, {method: names that the model says}).
    """
    figure = plt.figure(figsize=(13, 9), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1))
    bars, differences = top.subplots(1, 2, width_ratios=(3, 2))
    _draw_bars(bars, scores)
    _draw_differences(differences, scores)
    _draw_pictures(bottom, pictures)
    figure.suptitle(title, fontsize=11)
    with whole_file(path) as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


def _draw_bars(axes, scores) -> None:
    measures = list(next(iter(scores.values())))
    width = 0.8 / len(scores)
    for place, (method, found) in enumerate(scores.items()):
        left = [index + place * width for index in range(len(measures))]
        means = [sum(found[measure]) / len(found[measure]) for measure in measures]
        axes.bar(left, means, width * 0.92, color=COLOURS[method], label=method)
        for x, measure in zip(left, measures, strict=True):
            axes.plot([x] * len(found[measure]), found[measure], ".", color="black", markersize=4)
    axes.set_xticks([index + width / 2 for index in range(len(measures))], _short(measures), fontsize=8)
    axes.set_ylim(0, 100)
    axes.set_title("held-out scenes, % (a dot a seed)", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize=8)


def _draw_differences(axes, scores) -> None:
    measures = list(scores["CLIP"])
    for x, measure in enumerate(measures):
        pairs = zip(scores["SuperCLIP"][measure], scores["CLIP"][measure], strict=True)
        difference = PairedDifference([ours - theirs for ours, theirs in pairs])
        low, high = difference.interval or (difference.mean, difference.mean)
        axes.plot([x, x], [low, high], color=COLOURS["SuperCLIP"], linewidth=3)
        axes.plot(x, difference.mean, "o", color=COLOURS["SuperCLIP"])
        axes.plot([x] * len(difference.values), difference.values, ".", color="black", markersize=4)
    axes.axhline(0, color="#999999", linewidth=1)
    axes.set_xticks(range(len(measures)), _short(measures), fontsize=8)
    axes.set_xlim(-0.5, len(measures) - 0.5)
    axes.set_title("SuperCLIP − CLIP, points (bar: 95 % interval, dot: a seed)", fontsize=10)
    axes.grid(axis="y", alpha=0.3)


def _draw_pictures(figure, pictures) -> None:
    shown, below = figure.subplots(2, len(pictures), height_ratios=(1.3, 1))
    for axes, words, (image, objects, said) in zip(shown, below, pictures, strict=True):
        axes.imshow(image, interpolation="nearest")
        axes.set_axis_off()
        words.set_axis_off()
        for place, (method, names) in enumerate(said.items()):
            lines = "\n".join(f"{'✓' if name in objects else '✗'} {name}" for name in names)
            words.text(
                0, 1.05 - place * 0.6, f"{method} says\n{lines}", transform=words.transAxes, fontsize=8,
                verticalalignment="top", color=COLOURS[method],
            )  # fmt: skip


def _short(measures: Sequence[str]) -> list[str]:
    return [measure.replace("_", " ").replace(" to ", "→") for measure in measures]
