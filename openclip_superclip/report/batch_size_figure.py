"""The batch-size figure: scores over the batch size, each method's mean and seeds, and the paper's curve beside it."""

from collections import defaultdict

from matplotlib.axes import Axes

from .comparison import Comparison
from .figure_style import MOST_PANELS, batch, legend, panel_grid, png, style
from .run_scores import label


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
