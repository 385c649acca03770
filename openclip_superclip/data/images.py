"""Opens images safely, checks them, and converts them for display: upright, 8-bit RGB, on white."""

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from ..errors import reason

# Formats with a single image and without code: EPS would start Ghostscript, and an icon is decoded at every size.
FORMATS = {"PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"}
SUFFIXES = (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")  # in folders
MAX_ASPECT = 100  # longest aspect ratio: preprocessing enlarges the shorter side, and the longer one with it


def images_below(folder: Path) -> list[Path]:
    """Returns the images in a folder and the folders below it; links are followed, each folder is read once."""
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()  # they have been read, too
            continue
        seen.add(real)
        folders.sort()
        found += [Path(place, name) for name in names if name.lower().endswith(SUFFIXES)]
    return sorted(found)


def open_image(source: str | Path | bytes | BinaryIO) -> Image.Image:
    """Opens an image from its file or content, reading only the header.

    Raises OSError, ValueError or another of Pillow's errors for a file that is not an image in one of FORMATS, and
    ValueError for an aspect ratio so large that preprocessing would run out of memory.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Pillow refuses twice as many pixels
        Image.init()
        formats = tuple(FORMATS & Image.OPEN.keys())  # Pillow may be built without some of them
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
    width, height = image.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        image.close()
        raise ValueError(
            f"it has {width:,} × {height:,} pixels: expected a longer side of at most {MAX_ASPECT} times the shorter"
        )
    return image


def unreadable(error: Exception) -> str:
    """Returns why an image cannot be read, from the exception."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return f"no readable image ({reason(error)})"


def is_deep(image: Image.Image) -> bool:
    """Returns whether an image has more than eight bits per channel; OpenCLIP clips the values, mostly to white."""
    return image.mode.startswith(("I", "F"))


def as_seen(image: Image.Image, shortest: int | None = None) -> Image.Image:
    """Converts an opened image for display: upright, 8-bit RGB, transparent pixels on white.

    Images are reduced if their shorter side has twice as many pixels as `shortest` or more.
    """
    if shortest:
        image.draft(None, (shortest, shortest))  # a JPEG is decoded at a smaller size
    ImageOps.exif_transpose(image, in_place=True)
    image = _eight_bits(image)
    factor = min(image.size) // shortest if shortest else 1
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = image.reduce(factor) if factor > 1 else image
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        return white.convert("RGB")
    return (image.reduce(factor) if factor > 1 else image).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Converts 16-bit and 32-bit images to 8 bits and palettes to colours; returns other images unchanged."""
    if image.mode in ("1", "P", "PA"):
        return image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    if not is_deep(image):
        return image
    pixels = np.nan_to_num(np.asarray(image))
    if image.mode.startswith("I;16") or image.format == "PNG":
        white = 65535
    else:  # values of any scale: the smallest range that contains them
        white = next((scale for scale in (1, 255, 65535) if pixels.max() <= scale), pixels.max())
        white = max(white, 255) if image.mode == "I" else white
    return Image.fromarray((pixels.clip(0) / np.float32(white / 255)).astype(np.uint8))


def read_image(source: str | Path | bytes, convert: Callable[[Image.Image], Any]) -> tuple[Any, str]:
    """Returns what `convert` makes of an opened image, and ""; or None and the reason why it cannot be read."""
    try:
        with open_image(source) as image:
            return convert(image), ""
    except Exception as error:  # a broken file raises anything
        return None, unreadable(error)


def load_image(source: Path | bytes, shortest: int) -> tuple[Image.Image | None, str]:
    """Returns an image for display, reduced as `as_seen` does, and ""; or None and the reason why it cannot be read."""
    return read_image(source, lambda image: as_seen(image, shortest))


def image_problem(source: str | bytes) -> str:
    """Decodes an image from its path or content, and returns why it cannot be read, or ""; URLs are not read."""
    return "" if isinstance(source, str) and "://" in source else read_image(source, Image.Image.load)[1]
