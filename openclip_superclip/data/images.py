"""Images: opened safely, checked, and shown as people see them: upright, in eight bits of RGB, on white."""

import io
import os
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from ..errors import reason

# Formats of one image and no code: EPS would start Ghostscript, and an icon is decoded at all of its sizes.
FORMATS = {"PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"}
MAX_ASPECT = 100  # longer side by shorter: preprocessing enlarges the shorter side, and the longer one with it
NUM_THREADS = 8  # Pillow decodes outside Python's lock


def open_image(source: str | Path | bytes | BinaryIO) -> Image.Image:
    """Returns an image with its header read, given its file or content.

    Raises OSError, ValueError or what else Pillow raises for a file that is no image of FORMATS, and ValueError for
    one so oblong that its preprocessing would fill the memory.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice as many pixels are an error
        Image.init()
        formats = tuple(FORMATS & Image.OPEN.keys())  # Pillow may be built without some
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
    width, height = image.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        image.close()
        raise ValueError(
            f"it has {width:,} × {height:,} pixels: expected a longer side of at most {MAX_ASPECT} times the shorter"
        )
    return image


def unreadable(error: Exception) -> str:
    """Returns why an image cannot be read, given what was raised."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return f"no readable image ({re.sub(r' ?<[^<>]* object at 0x[0-9a-f]+>', '', reason(error))})"


def is_deep(image: Image.Image) -> bool:
    """Returns whether an image has more than eight bits a channel, which OpenCLIP cuts off: most become white."""
    return image.mode.startswith(("I", "F"))


def is_rotated(image: Image.Image) -> bool:
    """Returns whether an image is to be turned or mirrored before it is shown, which OpenCLIP does not do."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)


def as_seen(image: Image.Image, shortest: int | None = None) -> Image.Image:
    """Returns an opened image as people see it: upright, in eight bits of RGB, on white where it is transparent.

    Args:
        shortest: pixels of a side that are enough: an image with twice as many each way is reduced.
    """
    if shortest:
        image.draft(None, (shortest, shortest))  # a JPEG is decoded smaller
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
    """Returns an image of 16 or 32 bits in 8, one of a palette in its colours; others as they are."""
    if image.mode in ("1", "P", "PA"):
        return image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    if not is_deep(image):
        return image
    pixels = np.nan_to_num(np.asarray(image))
    if image.mode.startswith("I;16") or image.format == "PNG":
        white = 65535
    else:  # numbers of any scale: the smallest that holds them
        white = next((scale for scale in (1, 255, 65535) if pixels.max() <= scale), pixels.max())
        white = max(white, 255) if image.mode == "I" else white
    return Image.fromarray((pixels.clip(0) / np.float32(white / 255)).astype(np.uint8))


class LoadedImage(NamedTuple):
    """An image as people see it, with its file, or the reason why it cannot be read."""

    path: Path
    image: Image.Image | None
    reason: str = ""


def load_image(path: Path | BinaryIO, shortest: int) -> LoadedImage:
    """Returns the image, reduced as `as_seen` does, or the reason why it cannot be read."""
    try:
        with open_image(path) as image:
            return LoadedImage(path, as_seen(image, shortest))
    except Exception as error:  # a broken file raises anything
        return LoadedImage(path, None, reason(error))


class ImageReport(NamedTuple):
    """What the check of an image found; `problem` is why it cannot be read, "" if it can."""

    problem: str = ""
    is_deep: bool = False
    is_rotated: bool = False


def check_image(source: str | bytes) -> ImageReport:
    """Returns what is found in an image, given its path or its content, which is decoded; URLs are not read."""
    if isinstance(source, str) and ("://" in source or not os.path.exists(source)):
        return ImageReport("" if "://" in source else "no such file")
    try:
        with open_image(source) as image:
            image.load()
            return ImageReport("", is_deep(image), is_rotated(image))
    except Exception as error:  # a broken file raises anything
        return ImageReport(unreadable(error))


def check_images(sources: Sequence[str], threads: int = NUM_THREADS, quiet: bool = True) -> list[ImageReport]:
    """Returns a report on each image; with a progress bar on a terminal unless `quiet`."""
    with ThreadPoolExecutor(threads) as pool:
        reports = pool.map(check_image, sources)
        disable = True if quiet else None
        return list(tqdm(reports, total=len(sources), desc="reading images", unit=" images", disable=disable))


def depth_and_rotation_warnings(reports: Sequence[ImageReport], flag: str) -> list[str]:
    """Returns a line on images that OpenCLIP would read otherwise than people see them, or nothing."""
    num_deep, num_rotated = sum(report.is_deep for report in reports), sum(report.is_rotated for report in reports)
    if not num_deep and not num_rotated:
        return []
    return [
        f"{flag}: of {len(reports):,} images that were decoded, {num_deep:,} have more than eight bits a channel, "
        f"which OpenCLIP trains as nearly white, and {num_rotated:,} are rotated by their EXIF data, which it "
        "ignores; superclip shards writes both as they are seen"
    ]
