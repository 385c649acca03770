"""The files of pictures that the user names, alone or in folders."""

from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError
from .heat_map_file import is_heat_map

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def find_pictures(arguments: Iterable[Path]) -> list[Path]:
    """Returns the files, and in their place those in the folders, by name; InputError for what is not there.

    The heat maps that an earlier call has left in a folder are no pictures of the user's.
    """
    found = []
    for argument in arguments:
        if argument.is_dir():
            inside = sorted(path for path in argument.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
            inside = [path for path in inside if not is_heat_map(path)]
            if not inside:
                raise InputError(f"{argument} holds no pictures; expected {' '.join(sorted(SUFFIXES))} in it or below")
            found += inside
        elif argument.exists():
            found.append(argument)
        else:
            raise InputError(f"there is no picture {argument}")
    return list(dict.fromkeys(found))
