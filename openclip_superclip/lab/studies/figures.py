"""The figures of reports, studies and the demo."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import EngFormatter

from ...files import write_bytes
from ...rendering import png, pyplot
from .comparable_runs import Comparison, Series, number
from .reported_run import FINISHED
from .run_scores import LABELS, PairedDifference

plt = pyplot()
COLOURS = {
    "clip": "#7d7d7d",
    "superclip": "#d1495b",
    "siglip": "#4f6d7a",
    "supersiglip": "#e08e45",
    "flip": "#8a79af",
    "superflip": "#2a9d8f",
}
STYLES = ["-", "--", "-.", ":"]  # of the series of one method
ARM_COLOURS = ("#d1495b", "#4f6d7a", "#e08e45", "#2a9d8f", "#8a79af", "#7d7d7d")
DEMO_COLOURS = {"CLIP": "#8c8c8c", "SuperCLIP": "#d1495b"}
MOST_LETTERS = 14  # of a name below an image
DEMO_SIZE = (5.6, 6.4)  # inches: readable on a phone
WIDTH = 10.4  # inches: the width of a report's page
MOST_PANELS, COLUMNS = 12, 4  # of a figure with a panel for each score
MOST_POINTS = 150  # of a loss curve: longer ones are averaged
LOSSES = ("contrastive_loss", "class_loss")


class Figure(NamedTuple):
    """A PNG of a report, and its caption."""

    file: str
    png: bytes
    describes: str


def legend(drawing: Drawing, grid, ncols: int) -> None:
    """Adds one legend for all axes, above them."""
    handles = {}
    for axes in grid.flat:
        handles |= {
            name: handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
        }
    names = sorted(handles, key=lambda name: "the paper" in name)  # ours first
    handles = [handles[name] for name in names]
    drawing.legend(
        handles, names, loc="outside upper center", ncols=ncols, frameon=False, fontsize=9
    )


def _look(comparison: Comparison, series: Series) -> dict:
    """Returns the colour and the line style of a series."""
    same = [other for other in comparison.series if other.method == series.method]
    return {
        "color": COLOURS.get(series.method, "#333333"),
        "linestyle": STYLES[same.index(series) % len(STYLES)],
    }


def _batch(size: int) -> str:
    """Returns 16K for 16,384, as the paper writes it."""
    return f"{size // 1024}K" if size % 1024 == 0 else number(size)


def draw_batch_sizes(comparison: Comparison, file: str) -> Figure | None:
    """Returns scores over the batch size; None if no score has two batch sizes, the paper's
    included."""
    keys = [key for key in comparison.score_keys if len(_sizes(comparison, key)) > 1][:MOST_PANELS]
    if not keys:
        return None
    rows, columns = math.ceil(len(keys) / COLUMNS), min(len(keys), COLUMNS)
    size = (WIDTH, 0.9 + 2.6 * rows)
    drawing, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat[len(keys) :]:
        axes.set_axis_off()
    for axes, key in zip(grid.flat, keys, strict=False):
        draw_scores(axes, comparison, key)
        axes.set_title(f"{LABELS.get(key, key)}, %", fontsize=9)
    legend(drawing, grid, ncols=2)
    return Figure(file, png(drawing), "Scores over the batch size")


def _sizes(comparison: Comparison, key: str) -> list[int]:
    """Returns the batch sizes of a panel: ours and those of the paper's curves."""
    ours = {size for series, size in comparison.groups if comparison.score(series, size, key)}
    curves = (comparison.paper_curve(series, key) for series in comparison.series)
    return sorted(ours.union(point.batch_size for curve in curves for point in curve))


def draw_scores(axes: Axes, comparison: Comparison, key: str) -> None:
    """Draws one panel: a score of every series over the batch size, and the paper's curve."""
    for series in comparison.series:
        look = _look(comparison, series)
        sizes = [size for size in comparison.batch_sizes if comparison.score(series, size, key)]
        spreads = [comparison.score(series, size, key) for size in sizes]
        means, errors = (
            [spread.mean for spread in spreads],
            [spread.std or 0.0 for spread in spreads],
        )
        if sizes:
            axes.errorbar(
                sizes,
                means,
                yerr=errors,
                marker="o",
                markersize=5,
                capsize=3,
                label=series.name,
                **look,
            )
        for size, spread in zip(sizes, spreads, strict=True):
            if len(spread.values) > 1:
                axes.plot(
                    [size] * len(spread.values),
                    spread.values,
                    ".",
                    color="black",
                    markersize=3,
                    zorder=3,
                )
        if paper := comparison.paper_curve(series, key):
            theirs = Series(series.method, series.variant)  # without our training
            axes.plot(
                [p.batch_size for p in paper],
                [p.value for p in paper],
                marker="o",
                markerfacecolor="white",
                color=look["color"],
                linestyle=":",
                alpha=0.8,
                label=f"{theirs.name}, the paper",
            )
    sizes = _sizes(comparison, key)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [_batch(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("batch size")
    axes.grid(alpha=0.3)
    axes.margins(x=0.08, y=0.12)


def draw_losses(comparison: Comparison, file: str) -> Figure | None:
    """Returns the losses over the samples seen, a row for each batch size; None if no run has
    logged a loss."""
    logged = [
        name
        for name in LOSSES
        if any(name in point for run in comparison.runs for point in run.points)
    ]
    sizes = sorted({run.batch_size for run in comparison.runs if run.points})
    if not logged:
        return None
    size = (WIDTH, 0.9 + 2.4 * len(sizes))
    drawing, grid = plt.subplots(
        len(sizes), len(logged), figsize=size, squeeze=False, layout="constrained"
    )
    for row, batch_size in zip(grid, sizes, strict=True):
        for axes, loss in zip(row, logged, strict=True):
            _draw_loss(axes, comparison, batch_size, loss)
            axes.set_title(f"{loss.replace('_', ' ')}, batch {_batch(batch_size)}", fontsize=9)
    legend(drawing, grid, ncols=4)
    return Figure(file, png(drawing), "Losses over the samples seen")


def _draw_loss(axes: Axes, comparison: Comparison, batch_size: int, loss: str) -> None:
    for (series, size), runs in comparison.groups.items():
        for run in runs if size == batch_size else ():
            points = np.array(
                [(point["samples"], point[loss]) for point in run.points if loss in point]
            )
            if not len(points):
                continue
            step = math.ceil(len(points) / MOST_POINTS)
            parts = [
                points[start : start + step].mean(axis=0) for start in range(0, len(points), step)
            ]
            x, y = zip(*parts, strict=True)
            axes.plot(
                x, y, label=series.name, linewidth=1.3, alpha=0.8, **_look(comparison, series)
            )
            if run.state != FINISHED:
                axes.plot(x[-1], y[-1], "x", color="black", markersize=7, label="ended early")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("samples seen")
    axes.grid(alpha=0.3)
    axes.margins(x=0.02)


def draw_study(results) -> bytes:
    """Returns the figure of a study's results as PNG."""
    study, measures = results.study, results.measures
    figure, grid = plt.subplots(
        1,
        len(measures),
        figsize=(3.1 * len(measures) + 0.6, 3.8),
        layout="constrained",
        squeeze=False,
    )
    for axes, measure in zip(grid[0], measures, strict=True):
        for place, (arm, baseline) in enumerate(study.pairs):
            found = [results.difference(arm, baseline, cell, measure) for cell in study.cell_values]
            shift, colour = (
                0.12 * (place - (len(study.pairs) - 1) / 2),
                ARM_COLOURS[place % len(ARM_COLOURS)],
            )
            places = [x + shift for x in range(len(found))]
            bounds = [
                _draw_difference(axes, x, one, colour, 0.04)
                for x, one in zip(places, found, strict=True)
            ]
            if len(found) > 1:
                lows, highs = zip(*bounds, strict=True)
                axes.fill_between(places, lows, highs, color=colour, alpha=0.15, linewidth=0)
            line, means = "-" if len(found) > 1 else "", [difference.mean for difference in found]
            axes.plot(
                places, means, marker="o", linestyle=line, color=colour, label=f"{arm} − {baseline}"
            )
        cells = list(map(str, study.cell_values)) if study.cells else []
        _difference_axis(axes, cells, len(study.cell_values), results.title(measure))
        axes.set_xlabel((study.cell_field or "").replace("_", " "), fontsize=8)
    grid[0][0].set_ylabel(
        "difference, points or the title's unit\n(bar: 95 % interval, dot: a seed)", fontsize=8
    )
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return png(figure, bbox_inches="tight")  # long names of arms are wider than one panel


def _draw_difference(
    axes: Axes, x: float, difference: PairedDifference, colour: str, beside: float = 0.0
) -> tuple[float, float]:
    """Draws an interval and its seeds, and returns the interval."""
    bounds = difference.interval or (difference.mean, difference.mean)
    axes.plot([x, x], bounds, color=colour, linewidth=2.5)
    axes.plot(
        [x + beside] * len(difference.values),
        difference.values,
        ".",
        color="black",
        markersize=4,
        alpha=0.7,
    )
    return bounds


def _difference_axis(axes: Axes, names: Sequence[str], num_places: int, title: str) -> None:
    axes.axhline(0, color="#999999", linewidth=1)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_xlim(-0.5, num_places - 0.5)
    axes.set_title(title, fontsize=9)
    axes.grid(axis="y", alpha=0.3)


def draw_demo(path: Path, results) -> None:
    """Draws the demo's scores and their differences into a file. `demo_text` is its description."""
    study, measures = results.study, results.measures
    names = [
        measure.replace("_", " ").replace(" to ", "→").replace(" ", "\n") for measure in measures
    ]
    figure, (bars, differences) = plt.subplots(2, 1, figsize=DEMO_SIZE, layout="constrained")
    width = 0.8 / len(study.arms)
    for place, method in enumerate(study.arms):
        left = [index + place * width for index in range(len(measures))]
        spreads = [results.spread(method, None, measure) for measure in measures]
        bars.bar(
            left,
            [one.mean for one in spreads],
            width * 0.92,
            color=DEMO_COLOURS[method],
            label=method,
        )
        for x, one in zip(left, spreads, strict=True):
            bars.plot([x] * len(one.values), one.values, ".", color="black", markersize=4)
    bars.set_xticks([index + width / 2 for index in range(len(measures))], names, fontsize=10)
    bars.set_ylim(0, 100)
    bars.set_title("held-out scenes, % (a dot for each seed)", fontsize=11)
    bars.grid(axis="y", alpha=0.3)
    bars.legend(frameon=False, fontsize=10)
    for x, measure in enumerate(measures):
        difference = results.difference("SuperCLIP", "CLIP", None, measure)
        _draw_difference(differences, x, difference, DEMO_COLOURS["SuperCLIP"])
        differences.plot(x, difference.mean, "o", color=DEMO_COLOURS["SuperCLIP"])
    _difference_axis(differences, names, len(measures), "")
    differences.set_title("SuperCLIP − CLIP, points (bar: 95 % interval)", fontsize=11)
    differences.tick_params(axis="x", labelsize=10)
    write_bytes(path, png(figure, metadata={"Description": demo_text(results)}))


def demo_text(results) -> str:
    """Returns the description of `draw_demo`'s figure."""
    clip, superclip = (results.spread(arm, None, "zero_shot").mean for arm in ("CLIP", "SuperCLIP"))
    difference = results.difference("SuperCLIP", "CLIP", None, "zero_shot")
    return (
        "Scores of CLIP and SuperCLIP on held-out scenes, and their differences: zero-shot "
        f"{clip:.1f} % and {superclip:.1f} %, {difference} points, {results.study.seeds} "
        "paired seed(s)."
    )


def draw_demo_images(path: Path, examples: Sequence, description: str) -> None:
    """Draws scenes with one object, given (image, name, {method: predicted name}), four in a
    row, into a file."""
    rows = math.ceil(len(examples) / 4)
    figure, grid = plt.subplots(rows, 4, figsize=(DEMO_SIZE[0], 0.4 + 1.9 * rows), squeeze=False)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.07, top=0.94, wspace=0.08, hspace=0.35)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (image, name, predicted) in zip(grid.flat, examples, strict=False):
        axes.imshow(image, interpolation="nearest")
        for place, (method, answer) in enumerate(predicted.items()):
            text = answer if len(answer) <= MOST_LETTERS else f"{answer[: MOST_LETTERS - 1]}…"
            axes.text(
                0,
                -0.05 - 0.17 * place,
                f"{'✓' if answer == name else '✗'} {text}",
                fontsize=10,
                transform=axes.transAxes,
                verticalalignment="top",
                color=DEMO_COLOURS[method],
            )
    handles = [
        plt.Line2D([], [], color=colour, linewidth=5, label=method)
        for method, colour in DEMO_COLOURS.items()
    ]
    figure.legend(handles=handles, loc="upper center", ncols=2, frameon=False, fontsize=11)
    write_bytes(path, png(figure, metadata={"Description": description}))


def demo_images_text(
    num_shown: int, num_scenes: int, seed: int, right: dict[str, tuple[int, float]]
) -> str:
    """Returns the description of `draw_demo_images`'s figure; `right` has each method's right
    answers and accuracy."""
    (clip, clip_accuracy), (superclip, superclip_accuracy) = right["CLIP"], right["SuperCLIP"]
    return (
        f"{num_shown} of {num_scenes:,} held-out scenes with one object, seed {seed}: CLIP is "
        f"right in {clip}, "
        f"SuperCLIP in {superclip}; in all scenes, {clip_accuracy:.1f} % and "
        f"{superclip_accuracy:.1f} %. Each "
        "combination of right and wrong answers has its fraction of the images: its first "
        "scenes in the order of the test set."
    )
