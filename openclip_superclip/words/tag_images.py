"""Tags many images and writes tables, JSON Lines, heat maps and a contact sheet."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..data.images import load_image
from ..errors import InputError
from ..files import whole_file
from ..pages import data_url, html_template, markdown_table
from .tagger import FULL_BAR, SHORTEST, Seen, Tagger

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
HEAT_MAP = ".words.png"  # suffix of heat map files
LINES = "words.jsonl"
PER_PAGE = 200  # images per page of the contact sheet
THUMBNAIL = 240  # pixels


def find_images(arguments: Iterable[Path]) -> list[Path]:
    """Returns the given files, and the images in the given folders sorted by name, without heat maps.

    Raises InputError for a path that does not exist and for a folder without images.
    """
    found = []
    for argument in arguments:
        if argument.is_dir():
            inside = sorted(path for path in argument.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
            inside = [path for path in inside if not path.name.endswith(HEAT_MAP)]
            if not inside:
                raise InputError(f"{argument} holds no images; expected {' '.join(sorted(SUFFIXES))} in it or below")
            found += inside
        elif argument.exists():
            found.append(argument)
        else:
            raise InputError(f"there is no image {argument}")
    return list(dict.fromkeys(found))


class TaggedImage(NamedTuple):
    """An image and its words, or the reason why it could not be read."""

    path: Path
    words: list[Seen] | None  # None if the image could not be read
    reason: str = ""
    heatmap: Path | None = None
    thumbnail: str = ""  # a data: URL; empty if there is a heat map

    def record(self) -> dict:
        """Returns the words or the error as a JSON-serializable dict."""
        if self.words is None:
            return {"image": str(self.path), "error": self.reason}
        words = [{"word": seen.word, "score": round(seen.score, 6), "peak": round(seen.peak, 6)} for seen in self.words]
        return {"image": str(self.path), "words": words} | ({"heatmap": str(self.heatmap)} if self.heatmap else {})

    def table(self) -> str:
        """Returns the words as a Markdown table."""
        name = " ".join(str(self.path).encode(errors="replace").decode().split())  # file names may not be valid UTF-8
        if self.words is None:
            return f"{name} is skipped, it cannot be read: {self.reason}"
        rows = [[seen.word, f"{seen.score:.1%}", f"{seen.peak:.1%}"] for seen in self.words]
        lines = [name, "", markdown_table(["word", "score", "at the best place"], rows), ""]
        return "\n".join([*lines, f"{self.heatmap}\n"] if self.heatmap else lines)


def tag_images(paths: Sequence[Path], tagger: Tagger, heatmaps: Path | None = None) -> Iterator[TaggedImage]:
    """Yields each image with its words, in order.

    Args:
        heatmaps: folder for heat maps; None to draw none.
    """
    for path, name in zip(paths, _heat_map_names(paths), strict=True):
        yield _tagged(path, tagger, heatmaps / name if heatmaps else None)


def _heat_map_names(paths: Sequence[Path]) -> list[str]:
    """Returns a unique file name for each image's heat map, numbered if several images have the same stem."""
    names: dict[str, None] = {}  # an ordered set
    for path in paths:
        number, name = 1, f"{path.stem}{HEAT_MAP}"
        while name in names:
            number += 1
            name = f"{path.stem}-{number}{HEAT_MAP}"
        names[name] = None
    return list(names)


def _tagged(path: Path, tagger: Tagger, heatmap: Path | None) -> TaggedImage:
    _, image, reason = load_image(path, SHORTEST)
    if image is None:
        return TaggedImage(path, None, reason)
    words = tagger.tag(image)
    if heatmap and words:
        from .heat_map import draw  # needs matplotlib

        draw(heatmap, image, words, tagger.opened.preprocess_cfg)
        return TaggedImage(path, words, heatmap=heatmap)
    return TaggedImage(path, words, thumbnail=data_url(image, THUMBNAIL))


class WordsFolder:
    """A folder with the words of many images as JSON Lines and a contact sheet.

    Each image's line is appended to a temporary file whose name is a hash of the model, the settings and the images, so
    the same command resumes after an interruption.

    Args:
        out: an existing folder.
        model: file or folder of the model.
        heatmap: whether to draw heat maps into the folder.

    Attributes:
        earlier: the lines of images that an earlier call has tagged.
    """

    def __init__(self, out: Path, paths: Sequence[Path], tagger: Tagger, model: Path, heatmap: bool):
        self.out, self.paths, self.tagger, self.model, self.heatmap = out, paths, tagger, model, heatmap
        files = sorted(file for file in model.rglob("*") if file.is_file()) if model.is_dir() else [model]
        facts = [tagger.is_open or tagger.lexicon.words, tagger.top, heatmap, *map(_state, files), *map(_state, paths)]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        self.lines = out / f"{LINES}.{digest[:12]}.part"
        lines = self.lines.read_bytes().splitlines(keepends=True) if self.lines.exists() else []
        self.earlier = [line for line in lines if line.endswith(b"\n")]  # the last line may be incomplete

    def write(self) -> Iterator[TaggedImage]:
        """Writes all files and yields each image with its words, in order."""
        template = html_template(
            Path(__file__).with_name("contact_sheet.html"), page_name=_page_name,
            heat_map=lambda tagged: data_url(tagged.heatmap.read_bytes()),
        )  # fmt: skip
        num_pages, images = -(-len(self.paths) // PER_PAGE), self._images()
        for page in range(num_pages):
            shown = []
            for tagged in images:
                shown.append(tagged)
                yield tagged
                if len(shown) == PER_PAGE:
                    break
            parts = template.generate(
                title=f"The words of {len(self.paths):,} images", model=str(self.model), images=shown, page=page,
                column=700 if self.heatmap else THUMBNAIL + 24, thumbnail=THUMBNAIL, num_pages=num_pages,
                full_bar=FULL_BAR,
            )  # fmt: skip
            with whole_file(self.out / _page_name(page)) as sheet:
                sheet.writelines(part.encode("utf-8", "replace") for part in parts)  # see TaggedImage.table
        self.lines.rename(self.out / LINES)
        unused = {*self.out.glob("index_*.html"), *self.out.glob(f"{LINES}.*.part")}
        for old in unused - {self.out / _page_name(page) for page in range(num_pages)}:
            old.unlink()

    def _images(self) -> Iterator[TaggedImage]:
        """Yields the images that an earlier call has tagged, then tags the rest."""
        with whole_file(self.lines) as lines:
            lines.writelines(self.earlier)
        with self.lines.open("ab") as lines:
            yield from map(_read_line, self.earlier)
            names = _heat_map_names(self.paths)
            for path, name in list(zip(self.paths, names, strict=True))[len(self.earlier) :]:
                tagged = _tagged(path, self.tagger, self.out / name if self.heatmap else None)
                lines.write(f"{json.dumps(tagged.record())}\n".encode())
                lines.flush()
                yield tagged


def _read_line(line: bytes) -> TaggedImage:
    """Parses a line of JSON."""
    record = json.loads(line)
    path = Path(record["image"])
    if "error" in record:
        return TaggedImage(path, None, record["error"])
    words = [Seen(**word) for word in record["words"]]
    if "heatmap" in record:
        return TaggedImage(path, words, heatmap=Path(record["heatmap"]))
    return TaggedImage(path, words, thumbnail=data_url(load_image(path, THUMBNAIL).image, THUMBNAIL))


def _state(path: Path) -> list:
    """Returns the path, size and modification time of a file, to detect changes."""
    state = path.stat()
    return [str(path.resolve()), state.st_size, state.st_mtime_ns]


def _page_name(page: int) -> str:
    """Returns the file name of a page of the contact sheet, counted from 0."""
    return f"index_{page + 1}.html" if page else "index.html"
