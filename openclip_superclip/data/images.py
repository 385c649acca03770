"""Opens images safely, checks them, and reads the pixels of training or those of a viewer."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from PIL import ExifTags, Image

from ..errors import reason
from ..files import check_regular

# Formats with a single image and without code: EPS would start Ghostscript, and an icon is decoded
# at every size.
FORMATS = {"PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"}
# longest aspect ratio: preprocessing enlarges the shorter side, and the longer one with it
MAX_ASPECT = 100


def restrict_formats(_worker: int = 0) -> None:
    """Makes Pillow open only FORMATS in this process, and in those that it forks, whoever calls
    it."""
    Image.init()
    for name in Image.OPEN.keys() - FORMATS:
        del Image.OPEN[name]
    Image.ID[:] = [name for name in Image.ID if name in Image.OPEN]


def before_decoding(name: str, content: bytes) -> bytes | None:
    """Returns the content of a shard's member that webdataset would unpickle, and None for others,
    which it decodes; from then on, Pillow opens only FORMATS."""
    restrict_formats()  # this process may be a worker that was not forked
    return content if name.endswith((".pickle", ".pth", ".pyd")) else None


def decode_no_code() -> None:
    """Makes webdataset unpickle no members of shards, and Pillow open only FORMATS, in this process
    and in its workers."""
    from webdataset.autodecode import default_pre_handlers

    restrict_formats()
    if before_decoding not in default_pre_handlers:
        default_pre_handlers.append(before_decoding)


def open_image(source: str | Path | bytes | BinaryIO) -> Image.Image:
    """Opens an image from its file or content, reading only the header.

    Raises OSError, ValueError or another of Pillow's errors for a file that is not an image in one
    of FORMATS, and ValueError for an aspect ratio so large that preprocessing would run out of
    memory.
    """
    if isinstance(source, str | Path):
        check_regular(source)
    with warnings.catch_warnings():
        # Pillow refuses twice as many pixels
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        Image.init()
        formats = tuple(FORMATS & Image.OPEN.keys())  # Pillow may be built without some of them
        image = Image.open(
            io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats
        )
    width, height = image.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        image.close()
        raise ValueError(
            f"it has {width:,} × {height:,} pixels: expected a longer side of at most "
            f"{MAX_ASPECT} times the shorter"
        )
    return image


def is_deep(image: Image.Image) -> bool:
    """Returns whether an image has more than eight bits per channel; OpenCLIP clips the values,
    mostly to white."""
    return image.mode.startswith(("I", "F"))


def ignored_property(image: Image.Image) -> str:
    """Decodes an opened image and returns what OpenCLIP ignores when it reads the pixels, or ""."""
    image.load()
    if is_deep(image):
        return "more than 8 bits per channel"
    if image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
        return "rotated by EXIF data"
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        return "transparent"
    return ""


def read_image(
    source: str | Path | bytes, convert: Callable[[Image.Image], Any]
) -> tuple[Any, str]:
    """Returns what `convert` makes of an opened image, and ""; or None and the reason why it
    cannot be read."""
    try:
        with open_image(source) as image:
            return convert(image), ""
    except FileNotFoundError:
        return None, "no such file"
    except Exception as error:  # a broken file raises anything
        return None, f"no readable image ({reason(error)})"


def check_image(source: str | bytes) -> tuple[str, str]:
    """Decodes an image, given its path or content; a URL is no file, as in training.

    Returns why it cannot be read, and what OpenCLIP ignores in it; both may be "".
    """
    ignored, problem = read_image(source, ignored_property)
    return problem, ignored or ""
