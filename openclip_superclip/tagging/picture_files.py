"""Pictures: found in the files and folders that the user names, and opened as the model was trained on them."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from ..errors import InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class Picture(NamedTuple):
    """A picture's file with the picture, or with the reason why it cannot be read."""

    path: Path
    image: Image.Image | None
    reason: str


def find_pictures(arguments: Iterable[Path]) -> list[Path]:
    """Returns the files, and in their place those in the folders, by name; InputError for what is not there."""
    found = []
    for argument in arguments:
        if argument.is_dir():
            inside = sorted(path for path in argument.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
            if not inside:
                raise InputError(f"{argument} holds no pictures; expected {' '.join(sorted(SUFFIXES))} in it or below")
            found += inside
        elif argument.exists():
            found.append(argument)
        else:
            raise InputError(f"there is no picture {argument}")
    return list(dict.fromkeys(found))


def open_picture(path: Path) -> Picture:
    """Returns the picture upright and in RGB, or says why it cannot be read."""
    try:
        with Image.open(path) as file:
            return Picture(path, ImageOps.exif_transpose(file).convert("RGB"), "")
    except Exception as error:  # a broken file raises anything
        return Picture(path, None, " ".join(str(error).split()) or type(error).__name__)
