"""Tags many images and writes tables, JSON Lines, heat maps and a page."""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from ...data.images import SUFFIXES, images_below, read_image, trained_and_ignored
from ...errors import InputError
from ...files import whole_file, write_bytes, write_text
from ...rendering import aligned_table, data_url, html_template, png, pyplot
from .tagger import FULL_BAR, Seen, Tagger

HEAT_MAP = ".words.png"  # suffix of heat map files
FILES = ("index.html", "words.jsonl")  # of a folder; the first one has the mark
MARK = 'name="generator" content="superclip words"'
MAX_SHOWN = 200  # images on the page
THUMBNAIL = 240  # pixels
SIDE = 448  # pixels of a drawn image: higher than the resolution of most models
COLUMNS = 6
# fraction of the highest peak: words with lower peaks are not scaled to full brightness
FAINTEST = 0.1


def find_images(arguments: Iterable[Path]) -> list[Path]:
    """Returns the given files, and the images in the given folders sorted by name, without heat
    maps.

    Raises InputError for a path that does not exist and for a folder without images.
    """
    found = []
    for argument in arguments:
        if argument.is_dir():
            inside = [path for path in images_below(argument) if not path.name.endswith(HEAT_MAP)]
            if not inside:
                raise InputError(
                    f"{argument} holds no images; expected {' '.join(SUFFIXES)} in it or below"
                )
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
    thumbnail: str = ""  # a data: URL
    ignored: str = ""  # what the model does not see, as in training

    def record(self) -> dict:
        """Returns the words or the error as a JSON-serializable dict."""
        if self.words is None:
            return {"image": str(self.path), "error": self.reason}
        words = [
            {"word": seen.word, "score": round(seen.score, 6), "peak": round(seen.peak, 6)}
            for seen in self.words
        ]
        record = {"image": str(self.path), "words": words}
        if self.heatmap:
            record["heatmap"] = str(self.heatmap)
        if self.ignored:
            record["ignored"] = self.ignored
        return record

    def table(self) -> str:
        """Returns the words as a table in aligned columns."""
        # file names may not be valid UTF-8
        name = " ".join(str(self.path).encode(errors="replace").decode().split())
        if self.words is None:
            return f"{name} is skipped: {self.reason}"
        rows = [[seen.word, f"{seen.score:.1%}", f"{seen.peak:.1%}"] for seen in self.words]
        if self.ignored:
            name += f" ({self.ignored}, which the model does not see)"
        lines = [name, "", aligned_table(["word", "score", "at the best place"], rows), ""]
        return "\n".join([*lines, f"{self.heatmap}\n"] if self.heatmap else lines)


def tag_images(
    paths: Sequence[Path], tagger: Tagger, heatmaps: Path | None = None
) -> Iterator[TaggedImage]:
    """Yields each image with its words, in order, and draws heat maps into a folder if one is
    given."""
    taken: set[str] = set()
    for path in paths:
        read, reason = read_image(path, trained_and_ignored)
        if read is None:
            yield TaggedImage(path, None, reason)
            continue
        image, ignored = read
        words, heatmap = tagger.tag(image), None
        if heatmaps and words:
            names = (
                f"{path.stem}{f'-{number}' * (number > 1)}{HEAT_MAP}"
                for number in itertools.count(1)
            )
            taken.add(name := next(name for name in names if name not in taken))
            heatmap = heatmaps / name
            draw_heat_map(heatmap, image, words, tagger.opened.preprocess_cfg)
        yield TaggedImage(path, words, "", heatmap, data_url(image, THUMBNAIL), ignored)


def draw_heat_map(
    path: Path, image: Image.Image, words: Sequence[Seen], preprocess_cfg: PreprocessCfg
) -> None:
    """Draws the image as cropped for the model, and one heat map per word.

    A heat map's brightness is the word's score at each patch, relative to its peak and
    interpolated.
    """
    plt = pyplot()
    shown = as_model_sees(image, preprocess_cfg)  # [H, W, 3]
    rows, columns = math.ceil((1 + len(words)) / COLUMNS), min(1 + len(words), COLUMNS)
    height = shown.shape[0] / shown.shape[1]
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(2.3 * columns, (2.3 * height + 0.55) * rows),
        squeeze=False,
        layout="constrained",
    )
    panels = grid.flatten()
    for panel in panels:
        panel.set_axis_off()
    panels[0].imshow(shown)
    panels[0].set_title("as the model sees it", fontsize=10)
    brightest = max(seen.peak for seen in words)
    grey = shown.mean(axis=2, keepdims=True)
    for panel, seen in zip(panels[1:], words, strict=False):
        heat = F.interpolate(seen.map[None, None], shown.shape[:2], mode="bilinear")[0, 0].numpy()
        # 1: colour, 0: dark
        light = (heat / max(seen.peak, FAINTEST * brightest, 1e-12)).clip(0, 1)[..., None]
        glow = plt.get_cmap("inferno")(0.05 + 0.9 * light[..., 0])[..., :3]
        panel.imshow(
            (0.5 - 0.2 * light) * glow
            + (0.35 + 0.35 * light) * (grey * (1 - light) + shown * light)
        )
        panel.set_title(f"{seen.word}\n{seen.score:.1%}, at best {seen.peak:.0%}", fontsize=10)
    write_bytes(path, png(figure, bbox_inches="tight"))


def as_model_sees(image: Image.Image, preprocess_cfg: PreprocessCfg) -> np.ndarray:
    """Returns the image after the model's resizing and cropping, at a higher resolution: [H, W,
    3] in [0, 1]."""
    size = (
        preprocess_cfg.size
        if isinstance(preprocess_cfg.size, tuple | list)
        else (preprocess_cfg.size,) * 2
    )
    finer = math.ceil(SIDE / max(size))
    config = replace(
        preprocess_cfg,
        size=tuple(finer * side for side in size),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    return image_transform_v2(config, is_train=False)(image).permute(1, 2, 0).clamp(0, 1).numpy()


def write_folder(out: Path, tagged: Iterable[TaggedImage], model: Path) -> Iterator[TaggedImage]:
    """Writes words.jsonl and index.html, a page of the first images, and yields the images."""
    shown, num_images = [], 0
    with whole_file(out / "words.jsonl") as lines:
        for one in tagged:
            lines.write(f"{json.dumps(one.record())}\n".encode())
            num_images += 1
            if num_images <= MAX_SHOWN:
                shown.append(one)
            yield one
    template = html_template(
        Path(__file__).with_name("words_of_images.html"),
        heat_map=lambda one: data_url(one.heatmap.read_bytes()),
    )
    page = template.render(
        num_images=num_images,
        model=str(model),
        images=shown,
        full_bar=FULL_BAR,
        thumbnail=THUMBNAIL,
        column=700 if any(one.heatmap for one in shown) else THUMBNAIL + 24,
    )
    write_text(out / "index.html", page)
