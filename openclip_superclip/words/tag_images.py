"""Tags many images and writes tables, JSON Lines, heat maps and a page."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..data.images import read_image
from ..errors import InputError
from ..files import atomic_write, write_text
from ..rendering import data_url, html_template, markdown_table
from .heat_map import draw_heat_map
from .tagger import SeenWord, Tagger

SUFFIXES = (
    ".avif",
    ".bmp",
    ".gif",
    ".jp2",
    ".jpeg",
    ".jpg",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
HEAT_MAP = ".words.png"  # suffix of heat map files
COMMAND = "superclip words"
MAX_SHOWN = 200  # images on the page
NUM_LETTERS = 50  # of an image's name in that of its heat map: 255 bytes are allowed
THUMBNAIL = 240  # pixels


def find_images(arguments: Iterable[Path]) -> list[Path]:
    """Returns the given files, and the images in and below the given folders sorted by name.

    Heat maps are left out, and links to folders are not followed.

    Raises InputError for a path that does not exist and for a folder without images.
    """
    images = []
    for argument in arguments:
        if argument.is_dir():
            inside = [
                path
                for path in sorted(argument.rglob("*"))
                if path.name.lower().endswith(SUFFIXES)
                and not path.name.endswith(HEAT_MAP)
                and not path.is_dir()
            ]
            if not inside:
                raise InputError(
                    f"{argument} holds no images; expected {' '.join(SUFFIXES)} in it or below"
                )
            images += inside
        elif argument.exists():
            images.append(argument)
        else:
            raise InputError(f"there is no image {argument}")
    return list(dict.fromkeys(images))


class TaggedImage(NamedTuple):
    """An image and its words, or the reason why it could not be read."""

    path: Path
    words: list[SeenWord] | None  # None if the image could not be read
    reason: str
    heatmap: Path | None = None
    thumbnail: str = ""  # a data: URL

    def record(self) -> dict:
        """Returns the words or the error as a JSON-serializable dict."""
        if self.words is None:
            return {"image": str(self.path), "error": self.reason}
        words = [
            {"word": word.word, "score": round(word.score, 6), "peak": round(word.peak, 6)}
            for word in self.words
        ]
        record = {"image": str(self.path), "words": words}
        if self.heatmap:
            record["heatmap"] = str(self.heatmap)
        return record

    def table(self) -> str:
        """Returns the words as a table in Markdown."""
        name = " ".join(str(self.path).split())
        if self.words is None:
            return f"{name} is skipped: {self.reason}"
        rows = [[word.word, f"{word.score:.1%}", f"{word.peak:.1%}"] for word in self.words]
        table = markdown_table(["word", "score", "at the best place"], rows)
        text = f"{name}\n\n{table}\n"
        return f"{text}{self.heatmap}\n" if self.heatmap else text


def tag_images(
    paths: Sequence[Path], tagger: Tagger, heatmaps: Path | None, out: Path
) -> Iterator[TaggedImage]:
    """Yields each image with its words, in order, and draws heat maps into a folder, which will be
    `out`, if one is given."""
    taken = set()
    for path in paths:
        image, reason = read_image(path, lambda opened: opened.convert("RGB"))
        if image is None:
            yield TaggedImage(path, None, reason)
            continue
        words = tagger.tag(image)
        heatmap = None
        if heatmaps and words:
            name = stem = path.stem[:NUM_LETTERS]
            number = 1
            while name in taken:
                number += 1
                name = f"{stem}-{number}"
            taken.add(name)
            heatmap = out / f"{name}{HEAT_MAP}"
            draw_heat_map(heatmaps / heatmap.name, image, words, tagger.opened.model)
        yield TaggedImage(path, words, "", heatmap, data_url(image, THUMBNAIL))


def write_folder(folder: Path, tagged: Iterable[TaggedImage], model: Path) -> Iterator[TaggedImage]:
    """Writes words.jsonl and index.html, a page of the first images, and yields the images."""
    shown = []
    with atomic_write(folder / "words.jsonl") as lines:
        for num_images, image in enumerate(tagged, 1):
            lines.write(f"{json.dumps(image.record())}\n".encode())
            if num_images <= MAX_SHOWN:
                shown.append(image)
            yield image
    page = html_template(__file__, data_url=data_url).render(
        folder=folder,
        num_images=num_images,
        model=str(model),
        images=shown,
        thumbnail=THUMBNAIL,
    )
    write_text(folder / "index.html", page)
