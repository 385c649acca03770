"""A data set for classification that is separable: noisy images of three colours, in CLIP_benchmark's layout."""

from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def write_colours(folder: Path, splits: tuple[str, ...] = ("test",)) -> Path:
    """Writes 48 images a split and returns the folder."""
    rng = np.random.default_rng(0)
    for split in splits:
        (folder / split).mkdir(parents=True)
        with webdataset.TarWriter(str(folder / split / "0.tar")) as tar:
            for index in range(48):
                label = index % len(COLOURS)
                pixels = rng.normal(list(COLOURS.values())[label], 20, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                tar.write({"__key__": f"{index:03d}", "png": Image.fromarray(pixels), "cls": label})
        (folder / split / "nshards.txt").write_text("1\n")
    (folder / "classnames.txt").write_text("\n".join(COLOURS))
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\nthe {c}\n")
    return folder
