"""index.html: every picture of a folder with its words, in one file that needs no other."""

import base64
import io
from html import escape
from typing import BinaryIO

from PIL import Image

from .tagged_picture import TaggedPicture

THUMBNAIL = 240  # pixels

HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 1.5rem; background: #f6f6f4; color: #222 }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax({column}px, 1fr)); gap: 1rem }}
figure {{ margin: 0; padding: .7rem; background: #fff; border: 1px solid #ddd; border-radius: 6px }}
img {{ display: block; margin: auto; {image} }}
figcaption, p {{ overflow-wrap: anywhere; color: #666; font-size: 12px; margin: .4rem 0 }}
table {{ width: 100%; border-collapse: collapse }}
td {{ padding: 1px 4px; overflow-wrap: anywhere }}
td + td {{ width: 45%; font-size: 12px; white-space: nowrap }}
td span {{ display: inline-block; height: .65em; margin-right: 4px; background: #d1495b }}
.skipped {{ color: #b00 }}
</style></head><body>
<h1>{title}</h1>
<p>Seen by {model}. A word's score is its share of the caption that the class head expects, rare words weighing
most (IDF).</p>
<main>
"""


class ContactSheet:
    """Writes the sheet card by card, so that a folder may be larger than memory.

    Args:
        title, model: for the head of the page.
        heatmaps: whether the cards show heat maps, which are wider than pictures.
    """

    def __init__(self, file: BinaryIO, title: str, model: str, heatmaps: bool):
        self.file = file
        column, image = (700, "max-width: 100%") if heatmaps else (THUMBNAIL + 24, f"width: min(100%, {THUMBNAIL}px)")
        self._write(HEAD.format(title=escape(title), model=escape(model), column=column, image=image))

    def add(self, result: TaggedPicture) -> None:
        """Adds a picture with its words or its heat map, or why it is not there."""
        name = f"<figcaption>{escape(str(result.path))}</figcaption>"
        if result.words is None:
            card = f"{name}cannot be read: {escape(result.reason)}"
        elif result.heatmap:
            card = f'<img src="{_inline(result.heatmap.read_bytes(), "png")}" alt="{_words(result)}">{name}'
        else:
            card = f'<img src="{_thumbnail(result.image)}" alt="">{name}{_table(result)}'
        self._write(f"<figure{' class=skipped' if result.words is None else ''}>{card}</figure>\n")

    def close(self) -> None:
        """Ends the page."""
        self._write("</main></body></html>\n")

    def _write(self, text: str) -> None:
        self.file.write(text.encode("utf-8", "replace"))  # a file's name may be no text


def _table(result: TaggedPicture) -> str:
    highest = max((seen.score for seen in result.words), default=0.0) or 1.0
    rows = (
        f'<tr><td>{escape(seen.word)}</td><td><span style="width:{55 * seen.score / highest:.0f}%"></span>'
        f"{seen.score:.1%}</td></tr>"
        for seen in result.words
    )
    return f"<table>{''.join(rows)}</table>"


def _words(result: TaggedPicture) -> str:
    return escape(", ".join(f"{seen.word} {seen.score:.1%}" for seen in result.words))


def _thumbnail(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return _inline(file.getvalue(), "jpeg")


def _inline(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
