"""Pictures with the words that were seen in them, one after the other: as a table, a line of JSON and a heat map."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..table import markdown_table
from .decoded_picture import Picture, open_picture
from .heat_map_file import heat_map_names
from .tagger import Seen, Tagger

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


def _batches(paths: Sequence[Path], shortest: int, earlier: Mapping) -> Iterator[list[Picture]]:
    """Yields the pictures, decoded, as many together as memory is meant for them."""
    batch, num_pixels = [], 0
    for path in paths:
        picture = Picture(path, None) if path in earlier else open_picture(path, shortest)
        batch.append(picture)
        num_pixels += picture.image.width * picture.image.height if picture.image else 0
        if len(batch) == BATCH_SIZE or num_pixels >= BATCH_PIXELS:
            yield batch
            batch, num_pixels = [], 0
    if batch:
        yield batch
