"""A picture as people see it: upright, in eight bits of RGB, on white where it is transparent."""

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from ..errors import reason
from .shards import is_remote

DEEP = ("I", "F")  # modes that begin so hold more than eight bits


MOST_OBLONG = 100  # longer side by shorter: the shorter is enlarged to what the model sees, and the longer with it


class Picture(NamedTuple):
    """A picture's file with the picture, or with the reason why it cannot be read."""

    path: Path
    image: Image.Image | None
    reason: str = ""


def open_picture(path: Path | BinaryIO, shortest: int) -> Picture:
    """Returns the picture, or says why it cannot be read.

    Args:
        path: the file, or what it holds.
        shortest: pixels of a side that are enough: of a picture with twice as many each way, a fraction is decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what Pillow refuses is told all the same
            with Image.open(path) as file:
                check_sides(*file.size)
                file.draft(None, (shortest, shortest))  # a JPEG is decoded smaller
                ImageOps.exif_transpose(file, in_place=True)
                return Picture(path, _on_white(_reduced(_eight_bits(file), shortest)))
    except Exception as error:  # a broken file raises anything
        return Picture(path, None, reason(error))


def check_sides(width: int, height: int) -> None:
    """Raises ValueError for a picture so long or high that at the size which a model sees it fills the memory."""
    if max(width, height) > MOST_OBLONG * min(width, height):
        raise ValueError(
            f"it has {width:,} × {height:,} pixels: expected a longer side of at most {MOST_OBLONG} times the shorter"
        )


def _eight_bits(image: Image.Image) -> Image.Image:
    """Returns a picture of 16 or 32 bits in 8, of a palette in its colours; others as they are."""
    if image.mode in ("1", "P", "PA"):
        return image.convert("RGBA" if _is_transparent(image) else "RGB")
    if not image.mode.startswith(DEEP):
        return image
    pixels = np.nan_to_num(np.asarray(image))
    if image.mode.startswith("I;16") or image.format == "PNG":
        white = 65535
    else:  # numbers of any scale: the smallest that holds them
        white = next((scale for scale in (1, 255, 65535) if pixels.max() <= scale), pixels.max())
        white = max(white, 255) if image.mode == "I" else white
    return Image.fromarray((pixels.clip(0) / np.float32(white / 255)).astype(np.uint8))


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _reduced(image: Image.Image, shortest: int) -> Image.Image:
    factor = min(image.size) // shortest
    if factor < 2:
        return image
    return (image.convert("RGBA") if _is_transparent(image) else image).reduce(factor)


def _on_white(image: Image.Image) -> Image.Image:
    if not _is_transparent(image):
        return image.convert("RGB")
    picture = image.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return white.convert("RGB")


THREADS = 8  # Pillow decodes outside Python's lock


def picture_problem(picture: str, whole: bool = True) -> str:
    """Returns why a picture cannot be read, "" where it can; `whole` decodes it, not its header alone. URLs pass."""
    if is_remote(picture):
        return ""
    if not os.path.exists(picture):
        return "no such file"
    try:
        with Image.open(picture) as image:
            if whole:
                image.load()
    except Exception as error:  # of a broken file Pillow's decoders raise anything
        return f"no readable picture ({' '.join(str(error).split()) or type(error).__name__})"
    return ""


def picture_problems(
    pictures: Sequence[str], num_whole: int | None = None, threads: int = THREADS, quiet: bool = True
) -> list[str]:
    """Returns each picture's problem, "" where it has none. The first `num_whole` are decoded, None: all of them."""
    last = len(pictures) if num_whole is None else num_whole
    with ThreadPoolExecutor(threads) as pool:
        problems = pool.map(picture_problem, pictures, [place < last for place in range(len(pictures))])
        return list(tqdm(problems, total=len(pictures), desc="reading pictures", unit=" pictures", disable=quiet))
