"""Tags images one after the other: tables, lines of JSON, heat maps and a contact sheet."""

import base64
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..data.images import LoadedImage, load_image
from ..errors import InputError
from ..files import whole_file, write_text
from ..pages import html_template, markdown_table
from .heat_map import SUFFIX, is_heat_map
from .tagger import FULL_BAR, Seen, Tagger

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
BATCH_SIZE = 16
BATCH_PIXELS = 2**24  # of decoded images, 48 MiB: limits the memory of a batch
LINES = "words.jsonl"
PER_PAGE = 200  # images
THUMBNAIL = 240  # pixels


def find_images(arguments: Iterable[Path]) -> list[Path]:
    """Returns the files, and those in the folders, by name; InputError if there are none.

    Heat maps of an earlier call are left out, unless they are named.
    """
    found = []
    for argument in arguments:
        if argument.is_dir():
            inside = sorted(path for path in argument.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
            inside = [path for path in inside if not is_heat_map(path)]
            if not inside:
                raise InputError(f"{argument} holds no images; expected {' '.join(sorted(SUFFIXES))} in it or below")
            found += inside
        elif argument.exists():
            found.append(argument)
        else:
            raise InputError(f"there is no image {argument}")
    return list(dict.fromkeys(found))


class TaggedImage(NamedTuple):
    """An image and its words, or why it could not be read."""

    path: Path
    image: Image.Image | None  # None if an earlier call has tagged it
    words: list[Seen] | None
    reason: str = ""  # why it could not be read
    heatmap: Path | None = None

    def record(self) -> dict:
        """Returns its words for JSON."""
        if self.words is None:
            return {"image": str(self.path), "error": self.reason}
        words = [{"word": seen.word, "score": round(seen.score, 6), "peak": round(seen.peak, 6)} for seen in self.words]
        return {"image": str(self.path), "words": words} | ({"heatmap": str(self.heatmap)} if self.heatmap else {})

    def table(self) -> str:
        """Returns the words in Markdown."""
        name = " ".join(str(self.path).encode(errors="replace").decode().split())  # file names are bytes
        if self.words is None:
            return f"{name} is skipped, it cannot be read: {self.reason}"
        rows = [[seen.word, f"{seen.score:.1%}", f"{seen.peak:.1%}"] for seen in self.words]
        lines = [name, "", markdown_table(["word", "score", "at the best place"], rows), ""]
        return "\n".join([*lines, f"{self.heatmap}\n"] if self.heatmap else lines)


def tag_images(
    paths: Sequence[Path], tagger: Tagger, heatmaps: Path | None, earlier: Mapping[Path, TaggedImage]
) -> Iterator[TaggedImage]:
    """Yields each image with its words, in order.

    Args:
        heatmaps: a folder to draw heat maps into; None for no heat maps.
        earlier: images that an earlier call has tagged; they are not opened.
    """
    names: set[str] = set()
    for batch in _batches(paths, tagger.shortest, earlier):
        words = iter(tagger.tag([loaded.image for loaded in batch if loaded.image is not None]))
        for path, image, reason in batch:
            number, name = 1, f"{path.stem}{SUFFIX}"
            while name in names:
                number += 1
                name = f"{path.stem}-{number}{SUFFIX}"
            names.add(name)
            if path in earlier:
                yield earlier[path]
                continue
            seen = next(words) if image is not None else None
            heatmap = heatmaps / name if heatmaps is not None and seen else None
            if heatmap:
                from .heat_map import draw  # needs matplotlib

                draw(heatmap, image, seen, tagger.preprocess_cfg)
            yield TaggedImage(path, image, seen, reason, heatmap)


def _batches(paths: Sequence[Path], shortest: int, earlier: Mapping) -> Iterator[list[LoadedImage]]:
    """Yields decoded images, as many together as a batch may hold."""
    batch, num_pixels = [], 0
    for path in paths:
        loaded = LoadedImage(path, None) if path in earlier else load_image(path, shortest)
        batch.append(loaded)
        num_pixels += loaded.image.width * loaded.image.height if loaded.image else 0
        if len(batch) == BATCH_SIZE or num_pixels >= BATCH_PIXELS:
            yield batch
            batch, num_pixels = [], 0
    if batch:
        yield batch


class UnfinishedWords:
    """The images that were tagged so far, in a file that is deleted once all are.

    Args:
        file: perhaps of an earlier call; used if that had the same settings.
        settings: all that the words depend on, besides the images.
    """

    def __init__(self, file: Path, settings: dict):
        self.file, first = file, json.dumps({"settings": settings})
        lines = file.read_text().splitlines() if file.is_file() else []
        self.earlier: dict[Path, TaggedImage] = {}
        for line in lines[1:] if lines[:1] == [first] else []:
            try:
                record = json.loads(line)
            except ValueError:  # the last line, if the call was killed
                continue
            words = [Seen(word["word"], word["score"], word["peak"]) for word in record["words"]]
            heatmap = Path(record["heatmap"]) if "heatmap" in record else None
            tagged = TaggedImage(Path(record["image"]), None, words, heatmap=heatmap)
            if record["state"] == _state(tagged.path) and (tagged.heatmap is None or tagged.heatmap.is_file()):
                self.earlier[tagged.path] = tagged
        write_text(file, "\n".join([first, *map(_line, self.earlier.values()), ""]))
        self.lines = file.open("a")

    def add(self, tagged: TaggedImage) -> None:
        """Keeps an image with its words; one that cannot be read is tried again by the next call."""
        if tagged.words is not None and tagged.path not in self.earlier:
            self.lines.write(f"{_line(tagged)}\n")
            self.lines.flush()

    def __enter__(self) -> "UnfinishedWords":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        self.lines.close()
        if kind is None:
            self.file.unlink()


def _line(tagged: TaggedImage) -> str:
    return json.dumps({"state": _state(tagged.path), **tagged.record()})


def _state(path: Path) -> list[int] | None:
    """Returns size and time of a file, which change with it; None if it is gone."""
    try:
        state = path.stat()
    except OSError:
        return None
    return [state.st_size, state.st_mtime_ns]


def unfinished_words(
    out: Path, model: Path, words: str | None, tagger: Tagger, images: list[Path], heatmap: bool
) -> UnfinishedWords:
    """Returns the images that a stopped call with the same settings has tagged in the folder."""
    files = [file for file in sorted(model.rglob("*")) if file.is_file()] if model.is_dir() else [model]
    settings = {
        "model": [[str(file.resolve()), _state(file)] for file in files],
        "words": words and tagger.lexicon.words,
        "top": tagger.top,
        "heat maps": heatmap and [str(path) for path in images],  # whose names depend on each other
    }
    return UnfinishedWords(out / f"{LINES}.part", settings)


def write_words_folder(
    out: Path, paths: list[Path], tagger: Tagger, model: str, heatmap: bool, unfinished: UnfinishedWords,
    progress: Callable[[TaggedImage], None],
) -> None:  # fmt: skip
    """Writes the contact sheet, in pages, and the lines of JSON, image by image: a folder may be larger than memory.

    Args:
        model: its name on the pages.
        heatmap: whether heat maps are drawn into the folder.
        progress: called with each image, in order.
    """
    num_pages = max(1, math.ceil(len(paths) / PER_PAGE))
    template = html_template(
        Path(__file__).with_name("contact_sheet.html"), thumbnail=_thumbnail, page_name=_page_name,
        heat_map=lambda tagged: _inline(tagged.heatmap.read_bytes(), "png"),
    )  # fmt: skip
    with unfinished, whole_file(out / LINES) as lines:

        def tagged_images() -> Iterator[TaggedImage]:
            for tagged in tag_images(paths, tagger, out if heatmap else None, unfinished.earlier):
                lines.write(f"{json.dumps(tagged.record())}\n".encode())
                unfinished.add(tagged)
                progress(tagged)
                yield tagged

        images = tagged_images()
        for page in range(num_pages):
            parts = template.generate(
                title=f"The words of {len(paths):,} images", model=model, column=700 if heatmap else THUMBNAIL + 24,
                thumbnail=THUMBNAIL, images=islice(images, PER_PAGE), page=page, num_pages=num_pages,
                full_bar=FULL_BAR,
            )  # fmt: skip
            with whole_file(out / _page_name(page)) as sheet:
                sheet.writelines(part.encode("utf-8", "replace") for part in parts)  # file names are bytes
    for old in set(out.glob("index_*.html")) - {out / _page_name(page) for page in range(num_pages)}:
        old.unlink()


def _page_name(page: int) -> str:
    """Returns the file of a page of the contact sheet, counted from 0."""
    return f"index_{page + 1}.html" if page else "index.html"


def _thumbnail(tagged: TaggedImage) -> str:
    small = (tagged.image or load_image(tagged.path, THUMBNAIL).image).copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return _inline(file.getvalue(), "jpeg")


def _inline(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
