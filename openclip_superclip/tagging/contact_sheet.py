"""index.html: every picture of a folder with its words, in one file that needs no other."""

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from ..html_template import html_template
from .decoded_picture import open_picture
from .tagged_picture import TaggedPicture

THUMBNAIL = 240  # pixels
COLUMN, COLUMN_OF_HEAT_MAPS = THUMBNAIL + 24, 700


def write_contact_sheet(
    file: BinaryIO, title: str, model: str, heatmaps: bool, pictures: Iterable[TaggedPicture]
) -> None:
    """Writes the sheet card by card as the pictures come, so that a folder may be larger than memory.

    Args:
        title, model: for the head of the page.
        heatmaps: whether the cards show heat maps, which are wider than pictures.
    """
    template = html_template(Path(__file__).with_name("contact_sheet.html"), thumbnail=_thumbnail, heat_map=_heat_map)
    column = COLUMN_OF_HEAT_MAPS if heatmaps else COLUMN
    parts = template.generate(title=title, model=model, column=column, thumbnail=THUMBNAIL, pictures=pictures)
    for part in parts:
        file.write(part.encode("utf-8", "replace"))  # a file's name may be no text


def _thumbnail(picture: TaggedPicture) -> str:
    image = picture.image or open_picture(picture.path, THUMBNAIL).image
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return _inline(file.getvalue(), "jpeg")


def _heat_map(picture: TaggedPicture) -> str:
    return _inline(picture.heatmap.read_bytes(), "png")


def _inline(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
