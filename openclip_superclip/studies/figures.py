"""The batch-size figure: scores over the batch size, each method's mean and seeds, and the paper's curve beside it."""

import io
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..files import whole_file
from ..pages import pyplot
from .comparison import Comparison, Series, number
from .finished_runs import FINISHED, ReportedRun
from .scores import in_order, label
from .statistics import PairedDifference

plt = pyplot()
COLOURS = {
    "clip": "#7d7d7d", "superclip": "#d1495b", "siglip": "#4f6d7a", "supersiglip": "#e08e45", "flip": "#8a79af",
    "superflip": "#2a9d8f",
}  # fmt: skip


WIDTH = 10.4  # inches: the width of a report's page
MOST_PANELS, COLUMNS = 12, 4  # of a figure with a panel a score


STYLES = ["-", "--", "-.", ":"]  # of the series of one method


def style(comparison: Comparison, series: Series) -> dict:
    """Returns the colour and the line of a series."""
    same = [other for other in comparison.series if other.method == series.method]
    return {
        "color": COLOURS.get(series.method, "#333333"),
        "linestyle": STYLES[same.index(series) % len(STYLES)],
    }


def short(value: float, _=None) -> str:
    """Returns the label of a number of samples on an axis."""
    for factor, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:g}{letter}"
    return f"{value:g}"


def batch(size: int) -> str:
    """Returns 16K for 16,384, as the paper writes it."""
    return f"{size // 1024}K" if size % 1024 == 0 else number(size)


def panel_grid(num_panels: int) -> tuple[Figure, np.ndarray]:
    """Returns a figure with so many panels, a few in a row, and its axes; those that are too many are not shown."""
    rows, columns = math.ceil(num_panels / COLUMNS), min(num_panels, COLUMNS)
    size = (WIDTH, 0.9 + 2.6 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat[num_panels:]:
        axes.set_axis_off()
    return figure, grid


def legend(figure: Figure, grid, ncols: int) -> None:
    """Adds one legend for all axes, above them."""
    handles = {}
    for axes in grid.flat:
        handles |= {name: handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    names = sorted(handles, key=lambda name: "the paper" in name)  # ours first
    figure.legend(
        [handles[name] for name in names], names, loc="outside upper center", ncols=ncols, frameon=False, fontsize=9
    )


def png(figure: Figure) -> bytes:
    """Returns a figure as PNG, and closes it."""
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png")
    plt.close(figure)
    return file.getvalue()


def draw_batch_sizes(comparison: Comparison) -> bytes | None:
    """Returns the figure as PNG, None where no score has two batch sizes, or one beside the paper's curve."""
    panels = _panels(comparison)[:MOST_PANELS]
    if not panels:
        return None
    figure, grid = panel_grid(len(panels))
    for axes, key in zip(grid.flat, panels, strict=False):
        draw_scores(axes, comparison, key)
    legend(figure, grid, ncols=2)
    return png(figure)


def _panels(comparison: Comparison) -> list[str]:
    return [key for key in comparison.score_keys if len(_sizes(comparison, key)) > 1]


def _sizes(comparison: Comparison, key: str) -> list[int]:
    """Returns the batch sizes that a panel shows: ours and those of the paper's curves beside ours."""
    found = set()
    for series in comparison.series:
        found |= {size for size in comparison.batch_sizes if comparison.score(series, size, key)}
        found |= {point.batch_size for point in _paper(comparison, series, key)}
    return sorted(found)


def _paper(comparison: Comparison, series, key: str) -> list:
    points = [p for p in comparison.paper if (p.method, p.variant, p.key) == (series.method, dict(series.variant), key)]
    return sorted(points, key=lambda point: point.batch_size)


def draw_scores(axes: Axes, comparison: Comparison, key: str) -> None:
    """Draws one panel: a score of every series over the batch size, and the paper's curve."""
    for series in comparison.series:
        look = style(comparison, series)
        found = [(size, comparison.score(series, size, key)) for size in comparison.batch_sizes]
        found = [(size, spread) for size, spread in found if spread]
        if found:
            sizes, means = [size for size, _ in found], [spread.mean for _, spread in found]
            errors = [spread.std or 0.0 for _, spread in found]
            axes.errorbar(
                sizes, means, yerr=errors, marker="o", markersize=5, capsize=3, label=comparison.told(series), **look
            )
        for size, spread in found:
            if len(spread.values) > 1:
                axes.plot([size] * len(spread.values), spread.values, ".", color="black", markersize=3, zorder=3)
        paper = _paper(comparison, series, key)
        if paper:
            axes.plot(
                [p.batch_size for p in paper], [p.value for p in paper], marker="o", markerfacecolor="white",
                color=look["color"], linestyle=":", alpha=0.8, label=f"{series.name}, the paper",
            )  # fmt: skip
    sizes = _sizes(comparison, key)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [batch(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("batch size")
    axes.set_title(f"{label(key)}, %", fontsize=9)
    axes.grid(alpha=0.3)
    axes.margins(x=0.08, y=0.12)


def about(comparison: Comparison) -> str:
    """Returns how the figure is to be read, "" where there is nothing to say."""
    panels = _panels(comparison)
    told = [_sources(comparison, key) for key in panels[:MOST_PANELS]]
    if len(panels) > MOST_PANELS:
        told.append(f"Drawn are {MOST_PANELS} of {len(panels)} scores; the table has all.")
    return " ".join(filter(None, told))


def _sources(comparison: Comparison, key: str) -> str:
    """Returns where the paper's points of a panel are from, "" where it has none."""
    batches = defaultdict(set)
    for series in comparison.series:
        for point in _paper(comparison, series, key):
            batches[point.read_off, point.source].add(point.batch_size)
    told = [
        f"{'read off ' if read_off else ''}{source}{' (±0.05)' if read_off else ''} at batch "
        f"{', '.join(batch(size) for size in sorted(sizes))}"
        for (read_off, source), sizes in sorted(batches.items(), reverse=True)
    ]
    return f"The paper's {label(key)}: {'; '.join(told)}." if told else ""


def draw_course(comparison: Comparison) -> bytes | None:
    """Returns the figure as PNG, None where no run has a score at two epochs."""
    panels = _course_panels(comparison)[:MOST_PANELS]
    if not panels:
        return None
    figure, grid = panel_grid(len(panels))
    for axes, key in zip(grid.flat, panels, strict=False):
        for (series, batch_size), runs in comparison.cells.items():
            name = comparison.told(series, batch_size)
            name = name if len(comparison.batch_sizes) == 1 else f"{name}, batch {batch(batch_size)}"
            for points in (_points(run, key) for run in runs):
                if len(points) > 1:
                    look = style(comparison, series)
                    axes.plot(*zip(*points, strict=True), marker=".", alpha=0.8, label=name, **look)
        axes.xaxis.set_major_formatter(short)
        axes.set_xlabel("samples seen")
        axes.set_title(f"{label(key)}, %", fontsize=9)
        axes.grid(alpha=0.3)
    legend(figure, grid, ncols=2)
    return png(figure)


def about_course(comparison: Comparison) -> str:
    """Returns how much of the course the figure leaves out, "" where it shows all."""
    number = len(_course_panels(comparison))
    return f"Drawn are {MOST_PANELS} of {number} scores." if number > MOST_PANELS else ""


def _course_panels(comparison: Comparison) -> list[str]:
    keys = [key for run in comparison.runs for scores in run.course.values() for key in scores]
    return [key for key in in_order(keys) if any(len(_points(run, key)) > 1 for run in comparison.runs)]


def _points(run: ReportedRun, key: str) -> list[tuple[float, float]]:
    """Returns (samples seen, score) at every epoch that has it."""
    if not run.epochs:
        return []
    return [(run.samples * epoch / run.epochs, scores[key]) for epoch, scores in run.course.items() if key in scores]


LOSSES = ("contrastive_loss", "class_loss")


MOST_POINTS = 150  # of a curve: longer ones are averaged


def draw_curves(comparison: Comparison) -> bytes | None:
    """Returns the figure as PNG, None where no run has logged a loss."""
    logged = [name for name in LOSSES if any(name in point for run in comparison.runs for point in run.points)]
    sizes = [
        size for size in comparison.batch_sizes if any(run.points for run in comparison.runs if run.batch_size == size)
    ]
    if not logged or not sizes:
        return None
    along = len(sizes) == 1  # one batch size: the losses stand beside each other
    rows, columns = (1, len(logged)) if along else (len(logged), len(sizes))
    figure, grid = plt.subplots(
        rows, columns, figsize=(_width(columns), 0.9 + 2.4 * rows), sharex=True,
        sharey=False if along else "row", squeeze=False, layout="constrained",
    )  # fmt: skip
    for column, size in enumerate(sizes):
        for row, loss in enumerate(logged):
            axes = grid[0][row] if along else grid[row][column]
            _draw(axes, comparison, size, loss)
            if along or row == 0:
                axes.set_title(f"batch {batch(size)}", fontsize=10)
            if along or column == 0:
                axes.set_ylabel(loss.replace("_", " "))
            if along or row == rows - 1:
                axes.set_xlabel("samples seen")
    legend(figure, grid, ncols=4)
    return png(figure)


def _width(columns: int) -> float:
    """Returns inches: no more than a page has, unless there are many columns."""
    return max(WIDTH, 1.7 * columns)


def _draw(axes, comparison: Comparison, batch_size: int, loss: str) -> None:
    for series in comparison.series:
        for run in comparison.cells.get((series, batch_size), []):
            points = _averaged([(point["samples"], point[loss]) for point in run.points if loss in point])
            if not points:
                continue
            x, y = zip(*points, strict=True)
            axes.plot(x, y, label=comparison.told(series), linewidth=1.3, alpha=0.8, **style(comparison, series))
            if run.state != FINISHED:
                axes.plot(x[-1], y[-1], "x", color="black", markersize=7, label="ended early")
    axes.xaxis.set_major_formatter(short)
    axes.grid(alpha=0.3)
    axes.margins(x=0.02)


def _averaged(points: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """Returns the means of as many neighbouring points as it takes to be at most MOST_POINTS."""
    step = -(-len(points) // MOST_POINTS) or 1
    parts = [points[start : start + step] for start in range(0, len(points), step)]
    return [tuple(sum(values) / len(part) for values in zip(*part, strict=True)) for part in parts]


def not_drawn(comparison: Comparison) -> list[ReportedRun]:
    """Returns the runs whose logs show no loss."""
    return [run for run in comparison.runs if not any(loss in point for point in run.points for loss in LOSSES)]


ARM_COLOURS = ("#d1495b", "#4f6d7a", "#e08e45", "#2a9d8f", "#8a79af", "#7d7d7d")


def draw(results) -> bytes:
    """Returns the figure of a study's results as PNG."""
    study, measures = results.study, results.measures
    figure, grid = plt.subplots(
        1, len(measures), figsize=(3.1 * len(measures) + 0.6, 3.8), layout="constrained", squeeze=False
    )
    for axes, measure in zip(grid[0], measures, strict=True):
        for place, (arm, baseline) in enumerate(study.pairs):
            found = [results.difference(arm, baseline, cell, measure) for cell in study.cell_values]
            shift, colour = 0.12 * (place - (len(study.pairs) - 1) / 2), ARM_COLOURS[place % 6]
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
    return png(figure)


DEMO_COLOURS = {"CLIP": "#8c8c8c", "SuperCLIP": "#d1495b"}


def draw_demo(path: Path, scores: dict[str, dict[str, list[float]]], pictures: Sequence, title: str) -> None:
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
        axes.bar(left, means, width * 0.92, color=DEMO_COLOURS[method], label=method)
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
        axes.plot([x, x], [low, high], color=DEMO_COLOURS["SuperCLIP"], linewidth=3)
        axes.plot(x, difference.mean, "o", color=DEMO_COLOURS["SuperCLIP"])
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
                verticalalignment="top", color=DEMO_COLOURS[method],
            )  # fmt: skip


def _short(measures: Sequence[str]) -> list[str]:
    return [measure.replace("_", " ").replace(" to ", "→") for measure in measures]
