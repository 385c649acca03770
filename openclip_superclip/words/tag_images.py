"""Pictures with the words that were seen in them, one after the other: as a table, a line of JSON and a heat map."""

import base64
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

from PIL import Image

from ..data.images import LoadedImage, load_image
from ..errors import InputError
from ..files import whole_file
from ..pages import html_template, markdown_table
from .heat_map import heat_map_names, is_heat_map
from .tagger import FULL_BAR, Seen, Tagger

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


BATCH_SIZE = 16
BATCH_PIXELS = 2**24  # of decoded pictures, 48 MiB, which would otherwise be as many as they like


class TaggedPicture(NamedTuple):
    """A picture and its words, or why there are none."""

    path: Path
    image: Image.Image | None  # None where it was tagged by an earlier call
    words: list[Seen] | None
    reason: str = ""  # why the picture could not be read
    heatmap: Path | None = None

    def record(self) -> dict:
        """Returns what JSON tells of it."""
        if self.words is None:
            return {"image": str(self.path), "error": self.reason}
        words = [{"word": seen.word, "score": round(seen.score, 6), "peak": round(seen.peak, 6)} for seen in self.words]
        heatmap = {"heatmap": str(self.heatmap)} if self.heatmap else {}
        return {"image": str(self.path), "words": words, **heatmap}

    def json(self) -> str:
        """Returns one line of JSON."""
        return json.dumps(self.record())

    def table(self) -> str:
        """Returns the words in Markdown."""
        name = " ".join(str(self.path).encode(errors="replace").decode().split())  # a file's name may be no text
        if self.words is None:
            return f"{name} is skipped, it cannot be read: {self.reason}"
        rows = [[seen.word, f"{seen.score:.1%}", f"{seen.peak:.1%}"] for seen in self.words]
        lines = [name, "", markdown_table(["word", "score", "at the best place"], rows), ""]
        return "\n".join([*lines, f"{self.heatmap}\n"] if self.heatmap else lines)


def tagged_earlier(record: dict) -> TaggedPicture:
    """Returns what `record()` gave of a picture with words."""
    words = [Seen(word["word"], word["score"], word["peak"]) for word in record["words"]]
    heatmap = Path(record["heatmap"]) if "heatmap" in record else None
    return TaggedPicture(Path(record["image"]), None, words, heatmap=heatmap)


def tag_pictures(
    paths: Sequence[Path], tagger: Tagger, heatmaps: Path | None, earlier: Mapping[Path, TaggedPicture]
) -> Iterator[TaggedPicture]:
    """Yields each picture with its words, in order.

    Args:
        heatmaps: a folder for heat maps, if they are to be drawn.
        earlier: pictures that an earlier call has tagged; they are not opened.
    """
    names = heat_map_names(paths)
    for batch in _batches(paths, tagger.shortest, earlier):
        words = iter(tagger.tag([picture.image for picture in batch if picture.image is not None]))
        for path, image, reason in batch:
            if path in earlier:
                yield earlier[path]
                continue
            seen = next(words) if image is not None else None
            heatmap = None
            if heatmaps is not None and seen:
                from .heat_map import draw  # needs matplotlib

                heatmap = heatmaps / names[path]
                draw(heatmap, image, seen, tagger.preprocess_cfg)
            yield TaggedPicture(path, image, seen, reason, heatmap)


def _batches(paths: Sequence[Path], shortest: int, earlier: Mapping) -> Iterator[list[LoadedImage]]:
    """Yields the pictures, decoded, as many together as memory is meant for them."""
    batch, num_pixels = [], 0
    for path in paths:
        picture = LoadedImage(path, None) if path in earlier else load_image(path, shortest)
        batch.append(picture)
        num_pixels += picture.image.width * picture.image.height if picture.image else 0
        if len(batch) == BATCH_SIZE or num_pixels >= BATCH_PIXELS:
            yield batch
            batch, num_pixels = [], 0
    if batch:
        yield batch


class UnfinishedWords:
    """Keeps each tagged picture as it comes, until all are there.

    Args:
        file: of an earlier call, perhaps; it is resumed if that had the same settings.
        settings: what the words depend on, besides the pictures.
    """

    def __init__(self, file: Path, settings: dict):
        self.file = file
        first = json.dumps({"settings": settings})
        lines = file.read_text().splitlines() if file.is_file() else []
        self.earlier = dict(_read(lines[1:])) if lines[:1] == [first] else {}
        if not self.earlier:
            file.write_text(f"{first}\n")
        elif not file.read_text().endswith("\n"):  # a line that was cut
            file.write_text("\n".join([first, *map(_line, self.earlier.values())]) + "\n")
        self.lines = file.open("a")

    def add(self, picture: TaggedPicture) -> None:
        """Keeps a picture with its words; one that cannot be read is looked at again."""
        if picture.words is not None and picture.path not in self.earlier:
            self.lines.write(f"{_line(picture)}\n")
            self.lines.flush()

    def __enter__(self) -> "UnfinishedWords":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.lines.close()
        if kind is None:
            self.file.unlink()


def _line(picture: TaggedPicture) -> str:
    return json.dumps({"state": _state(picture.path), **picture.record()})


def _read(lines: list[str]):
    """Yields the pictures that are as they were, with their heat maps."""
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # cut
            continue
        picture = tagged_earlier(record)
        if record["state"] == _state(picture.path) and (picture.heatmap is None or picture.heatmap.is_file()):
            yield picture.path, picture


def _state(path: Path) -> list[int] | None:
    """Returns what changes when a file does; None where it is gone."""
    try:
        state = path.stat()
    except OSError:
        return None
    return [state.st_size, state.st_mtime_ns]


THUMBNAIL = 240  # pixels
COLUMN, COLUMN_OF_HEAT_MAPS = THUMBNAIL + 24, 700


def write_contact_sheet(
    file: BinaryIO, title: str, model: str, heatmaps: bool, page: int, num_pages: int, pictures: Iterable[TaggedPicture]
) -> None:
    """Writes a page of the sheet card by card as the images come, so that a folder may be larger than memory.

    Args:
        title, model: for the head of the page.
        heatmaps: whether the cards show heat maps, which are wider than images.
    """
    template = html_template(
        Path(__file__).with_name("contact_sheet.html"), thumbnail=_thumbnail, heat_map=_heat_map, page_name=page_name
    )
    parts = template.generate(
        title=title, model=model, column=COLUMN_OF_HEAT_MAPS if heatmaps else COLUMN, thumbnail=THUMBNAIL,
        pictures=pictures, page=page, num_pages=num_pages, full_bar=FULL_BAR,
    )  # fmt: skip
    for part in parts:
        file.write(part.encode("utf-8", "replace"))  # a file's name may be no text


def page_name(page: int) -> str:
    """Returns the file of a page of the contact sheet, counted from 0."""
    return f"index_{page + 1}.html" if page else "index.html"


def _thumbnail(picture: TaggedPicture) -> str:
    image = picture.image or load_image(picture.path, THUMBNAIL).image
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return _inline(file.getvalue(), "jpeg")


def _heat_map(picture: TaggedPicture) -> str:
    return _inline(picture.heatmap.read_bytes(), "png")


def _inline(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


LINES = "words.jsonl"
PER_PAGE = 200  # images


def unfinished_words(
    out: Path, model: Path, words: str | None, tagger: Tagger, pictures: list[Path], heatmap: bool
) -> UnfinishedWords:
    """Returns what an earlier call that was stopped has left in the folder, if it asked for the same."""
    files = [file for file in sorted(model.rglob("*")) if file.is_file()] if model.is_dir() else [model]
    settings = {
        "model": [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        "words": words and tagger.lexicon.words,
        "top": tagger.top,
        "heat maps": heatmap and [str(path) for path in pictures],  # whose names depend on each other
    }
    return UnfinishedWords(out / f"{LINES}.part", settings)


def write_words_folder(
    out: Path, paths: list[Path], tagger: Tagger, model: str, heatmap: bool, unfinished: UnfinishedWords,
    tell: Callable[[TaggedPicture], None],
) -> None:  # fmt: skip
    """Writes the contact sheet, in pages, and the lines of JSON, each image as soon as it is tagged.

    Args:
        heatmap: whether heat maps are drawn into the folder.
        tell: called with each picture, in order.
    """
    title, num_pages = f"The words of {len(paths):,} images", max(1, math.ceil(len(paths) / PER_PAGE))
    with unfinished, whole_file(out / LINES) as lines:

        def tagged() -> Iterator[TaggedPicture]:
            for picture in tag_pictures(paths, tagger, out if heatmap else None, unfinished.earlier):
                lines.write(f"{picture.json()}\n".encode())
                unfinished.add(picture)
                tell(picture)
                yield picture

        images = tagged()
        for page in range(num_pages):
            with whole_file(out / page_name(page)) as sheet:
                write_contact_sheet(sheet, title, model, heatmap, page, num_pages, islice(images, PER_PAGE))
        for _ in images:  # to its end
            pass
    for old in set(out.glob("index_*.html")) - {out / page_name(page) for page in range(num_pages)}:
        old.unlink()
