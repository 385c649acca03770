"""What was seen in each picture, as a table, a line of JSON and a heat map's file."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from open_clip.transform import PreprocessCfg
from PIL import Image

from .picture_files import open_picture
from .tagger import Seen, Tagger

BATCH_SIZE = 16


class TaggedPicture(NamedTuple):
    """A picture and its words, or why there are none."""

    path: Path
    image: Image.Image | None
    words: list[Seen] | None
    reason: str = ""  # why the picture could not be read
    heatmap: Path | None = None

    def json(self) -> str:
        """Returns one line of JSON."""
        if self.words is None:
            return json.dumps({"image": str(self.path), "error": self.reason})
        words = [{"word": seen.word, "score": round(seen.score, 6), "peak": round(seen.peak, 6)} for seen in self.words]
        heatmap = {"heatmap": str(self.heatmap)} if self.heatmap else {}
        return json.dumps({"image": str(self.path), "words": words, **heatmap})

    def table(self) -> str:
        """Returns the words in Markdown."""
        name = str(self.path).encode(errors="replace").decode()  # a file's name may be no text
        if self.words is None:
            return f"{name} is skipped, it cannot be read: {self.reason}"
        rows = [f"| {seen.word} | {seen.score:.1%} | {seen.peak:.1%} |" for seen in self.words]
        lines = [name, "", "| word | score | at the best place |", "|---|---|---|", *rows, ""]
        return "\n".join([*lines, f"{self.heatmap}\n"] if self.heatmap else lines)


def tag_pictures(
    paths: Sequence[Path], tagger: Tagger, heatmaps: Path | None, preprocess_cfg: PreprocessCfg
) -> Iterator[TaggedPicture]:
    """Yields the result of each picture, in order, drawing heat maps into the folder `heatmaps` if it is given."""
    names = set()
    for start in range(0, len(paths), BATCH_SIZE):
        pictures = [open_picture(path) for path in paths[start : start + BATCH_SIZE]]
        words = iter(tagger.tag([picture.image for picture in pictures if picture.image is not None]))
        for path, image, reason in pictures:
            seen = next(words) if image is not None else None
            heatmap = None
            if heatmaps is not None and seen:
                from .heat_map import draw  # needs matplotlib

                heatmap = heatmaps / _new_name(path, names)
                draw(heatmap, image, seen, preprocess_cfg)
            yield TaggedPicture(path, image, seen, reason, heatmap)


def _new_name(path: Path, names: set[str]) -> str:
    """Returns a heat map's name that no other picture has, and adds it to `names`."""
    stem, number = path.stem, 1
    while (name := f"{stem}.words.png") in names:
        number += 1
        stem = f"{path.stem}-{number}"
    names.add(name)
    return name
