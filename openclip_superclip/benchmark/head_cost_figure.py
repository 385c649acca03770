"""benchmark.png: time and peak memory of the class loss, and time of the whole step."""

import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ..atomic_files import whole_file


def draw(path: Path, report: dict) -> None:
    """Draws the benchmark's figure: medians as bars, every repeat as a dot."""
    panels = [
        ("loss and gradients, s", report["head_seconds"]),
        ("peak above the inputs, MiB", {k: [v / 2**20] for k, v in report["head_peak_bytes"].items()}),
    ]
    if "step_seconds" in report:
        panels.append((f"training step of {report['options']['model']}, s", report["step_seconds"]))
    figure, row = plt.subplots(1, len(panels), figsize=(5 * len(panels), 3.2), layout="constrained")
    for axes, (title, values) in zip(row, panels, strict=True):
        axes.barh(list(values), [statistics.median(v) for v in values.values()], color="#d1495b")
        for place, repeats in enumerate(values.values()):
            axes.plot(repeats, [place] * len(repeats), ".", color="black", markersize=4)
        axes.invert_yaxis()
        axes.set_title(title)
        axes.grid(axis="x", alpha=0.3)
    options, machine = report["options"], report["machine"]
    figure.suptitle(
        f"batch {options['head_batch']:,}, width {options['width']}, vocabulary {options['vocab']:,}, "
        f"{options['precision']}, {machine['device']}",
        fontsize=9,
    )
    with whole_file(path) as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)
