"""The figure of neighbours: what the nearest training patches of each patch show, models side by side."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from ..atomic_files import whole_file
from .dense_data import NO_CLASS

MOST_LETTERS = 28  # of a line above a column


def draw_neighbours(path: Path, maps: dict[str, Path]) -> None:
    """Draws a PNG: a row a test picture; its classes, and for each model those of every patch's nearest patches.

    Args:
        maps: the file of `neighbour_maps` by the model's name; of one data set.
    """
    arrays = {}
    for name, file in maps.items():
        with np.load(file) as found:
            arrays[name] = dict(found)
    first = next(iter(arrays.values()))
    rows, columns = len(first["pictures"]), 2 + len(arrays)
    figure, grid = plt.subplots(rows, columns, figsize=(1.7 * columns, 1.7 * rows + 0.3), squeeze=False)
    for row in range(rows):
        shown = [first["pictures"][row], _coloured(first["classes"][row])]
        shown += [_coloured(found["neighbours"][row]) for found in arrays.values()]
        for axes, image in zip(grid[row], shown, strict=True):
            axes.imshow(image, interpolation="nearest", extent=(0, 1, 0, 1))
            axes.set_axis_off()
    for axes, title in zip(grid[0], ["picture", "classes", *arrays], strict=True):
        axes.set_title("/\n".join(part[-MOST_LETTERS:] for part in Path(title).parts[-2:]), fontsize=7)
    figure.tight_layout(pad=0.4)
    with whole_file(path) as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


def _coloured(classes: np.ndarray) -> np.ndarray:
    """Returns a colour for each class, the same for a number in every picture; white where there is none."""
    colours = np.random.default_rng(0).integers(0, 230, (NO_CLASS + 1, 3), dtype=np.uint8)
    colours[NO_CLASS] = 255
    return colours[np.minimum(classes, NO_CLASS)]
