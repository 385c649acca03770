"""demo.png: the curves of the losses, the bars of the measures, and pictures with what each model says."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ..atomic_files import whole_file

COLOURS = {"CLIP": "#8c8c8c", "SuperCLIP": "#d1495b", "CLIP, equal time": "#4f6d7a"}


def draw(path: Path, columns: dict[str, list[dict]], summary: dict, pictures: Sequence, title: str) -> None:
    """Draws the demo's figure.

    Args:
        columns: the records of the runs (one a seed) by column of the table.
        summary: mean and spread, by column and measure.
        pictures: (image, true names, {column: names that the model says}).
    """
    figure = plt.figure(figsize=(13, 9.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1))
    losses, class_losses, bars = top.subplots(1, 3, width_ratios=(1, 1, 2))
    _draw_curves(losses, columns, "contrastive_loss")
    _draw_curves(class_losses, columns, "class_loss")
    _draw_bars(bars, columns, summary)
    _draw_pictures(bottom, pictures)
    figure.suptitle(title, fontsize=11)
    with whole_file(path) as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


def _draw_curves(axes, columns, loss) -> None:
    for column, records in columns.items():
        for record in records:
            curve = [point for point in record["curve"] if loss in point]
            label = column if record is records[0] and curve else None
            axes.plot(
                [p["samples"] for p in curve], [p[loss] for p in curve], color=COLOURS[column], alpha=0.7, label=label
            )
    axes.set_title(loss.replace("_", " "))
    axes.set_xlabel("samples seen")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)


def _draw_bars(axes, columns, summary) -> None:
    measures = list(next(iter(summary.values())))
    width = 0.8 / len(columns)
    for place, (column, records) in enumerate(columns.items()):
        left = [index + place * width for index in range(len(measures))]
        means = [summary[column][measure]["mean"] for measure in measures]
        axes.bar(left, means, width * 0.92, color=COLOURS[column], label=column)
        for x, measure in zip(left, measures, strict=True):
            values = [record["measures"][measure] for record in records]
            axes.plot([x] * len(values), values, ".", color="black", markersize=4)
    axes.set_xticks(
        [index + 0.8 / 2 - width / 2 for index in range(len(measures))],
        [measure.replace("_", " ").replace(" to ", "→") for measure in measures],
        fontsize=8,
    )
    axes.set_ylim(0, 100)
    axes.set_title("held-out scenes, % (a dot a seed)")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize=8)


def _draw_pictures(figure, pictures) -> None:
    shown, below = figure.subplots(2, len(pictures), height_ratios=(1.3, 1))
    for axes, words, (image, objects, said) in zip(shown, below, pictures, strict=True):
        axes.imshow(image, interpolation="nearest")
        axes.set_axis_off()
        words.set_axis_off()
        for place, (column, names) in enumerate(said.items()):
            lines = "\n".join(f"{'✓' if name in objects else '✗'} {name}" for name in names)
            words.text(
                0, 1.05 - place * 0.6, f"{column} says\n{lines}", transform=words.transAxes, fontsize=8,
                verticalalignment="top", color=COLOURS[column],
            )  # fmt: skip
