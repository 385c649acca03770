"""The files of heat maps: their names, and the mark by which a later call knows them."""

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

SUFFIX = ".words.png"
MARK = {"Software": "superclip words --heatmap"}  # in the PNG itself


def is_heat_map(path: Path) -> bool:
    """Returns whether a file is a heat map of ours, wherever it was moved."""
    if not path.name.endswith(SUFFIX):
        return False
    try:
        with Image.open(path) as file:
            return file.info.get("Software") == MARK["Software"]
    except Exception:  # a broken file raises anything; it is told where it is opened
        return False


def heat_map_names(paths: Iterable[Path]) -> dict[Path, str]:
    """Returns each picture's own name for its heat map."""
    names, taken = {}, set()
    for path in paths:
        name, number = f"{path.stem}{SUFFIX}", 1
        while name in taken:
            number += 1
            name = f"{path.stem}-{number}{SUFFIX}"
        names[path] = name
        taken.add(name)
    return names
