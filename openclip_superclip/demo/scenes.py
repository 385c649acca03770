"""Composes scenes of emoji with captions, and writes them as WebDataset shards."""

import io
import itertools
import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from webdataset import TarWriter

from ..errors import InputError
from ..files import atomic_write, read_json, write_text
from ..rendering import progress_bar

TILES = Path(__file__).parent / "tiles"
DESIGNERS = ("google", "twitter")
SPLITS = ("train", "tune", "test")  # "tune": of earlier studies, which tuned learning rates on it
VERSION = 1  # of the scenes: increase it if the same seed gives different bytes
RECORD = "dataset.json"  # beside shards, written first: what they contain
IMAGE_SIZE = 64
QUADRANT = 32
CORNERS = ((0, 0), (QUADRANT, 0), (0, QUADRANT), (QUADRANT, QUADRANT))


@cache
def drawings(designer: str) -> dict[str, bytes]:
    """Returns a designer's drawings as PNG bytes, by object."""
    with zipfile.ZipFile(TILES / f"{designer}.zip") as archive:
        return {
            Path(name).stem.replace("-", " "): archive.read(name) for name in archive.namelist()
        }


NAMES = sorted(drawings(DESIGNERS[0]))  # of the 100 objects


class Scene(NamedTuple):
    """An image, the names of its objects, and its captions by kind."""

    image: Image.Image
    objects: list[str]
    captions: dict[str, str]


def split_of(objects: Sequence[str]) -> str:
    """Returns the split of a set of two or more objects: 10 % of the sets are "tune", 10 % are
    "test".

    Single objects occur in all splits, with different drawings, positions and backgrounds.
    """
    part = zlib.crc32(", ".join(sorted(objects)).encode()) % 10
    return {0: "tune", 1: "test"}.get(part, "train")


def make_scene(
    seed: int, index: int, split: str, num_objects: Sequence[int] = range(1, 5)
) -> Scene:
    """Returns scene number `index` of a split, an RGB image of 64 by 64 pixels. Deterministic in
    its arguments.

    The number of objects is drawn from `num_objects` (values from 1 to 4). Captions: "long" names
    all objects, "short" names one, and "raw" a random subset.
    """
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    count = num_objects[rng.integers(len(num_objects))]
    objects = _draw_objects(rng, count, split)
    image = draw_image(rng, objects)

    def caption(length: int) -> str:
        return ", ".join(objects[index] for index in rng.permutation(count)[:length])

    captions = {
        "long": caption(count),
        "short": caption(1),
        "raw": caption(rng.integers(count) + 1),
    }
    return Scene(image, objects, captions)


def _draw_objects(rng: np.random.Generator, count: int, split: str) -> list[str]:
    """Returns random objects of a split."""
    while True:
        objects = [NAMES[index] for index in rng.choice(len(NAMES), count, replace=False)]
        if count == 1 or split_of(objects) == split:
            return objects


def draw_image(rng: np.random.Generator, objects: Sequence[str]) -> Image.Image:
    """Returns the objects on a light background, one per quadrant, each by a random designer,
    scaled, rotated and shifted."""
    count = len(objects)
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), tuple(rng.integers(200, 256, 3).tolist()))
    designers = rng.choice(DESIGNERS, count).tolist()
    sizes = rng.integers(22, 31, count).tolist()
    angles = rng.normal(0, 8, count).tolist()  # degrees
    shifts = rng.random((count, 2)).tolist()
    corners = [CORNERS[index] for index in rng.permutation(len(CORNERS))[:count]]
    for name, designer, size, angle, shift, corner in zip(
        objects, designers, sizes, angles, shifts, corners, strict=True
    ):
        drawing = _tile(designer, name, size).rotate(angle, Image.Resampling.BILINEAR)
        left = corner[0] + int(shift[0] * (QUADRANT - size + 1))
        top = corner[1] + int(shift[1] * (QUADRANT - size + 1))
        image.paste(drawing, (left, top), drawing)
    return image


@lru_cache(maxsize=10_000)
def _tile(designer: str, name: str, size: int) -> Image.Image:
    """Returns an RGBA drawing of `size` by `size` pixels."""
    with Image.open(io.BytesIO(drawings(designer)[name])) as image:
        return image.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)


def scenes(
    num: int, seed: int = 0, split: str = "train", num_objects: Sequence[int] = range(1, 5)
) -> Iterator[Scene]:
    """Iterates over the first `num` scenes of a split."""
    return (make_scene(seed, index, split, num_objects) for index in range(num))


def different_scenes(num: int) -> list[Scene]:
    """Returns the first `num` scenes for the test with at least two objects, and with different
    sets of objects and different long captions."""
    chosen = []
    seen = set()
    for index in itertools.count():
        scene = make_scene(0, index, "test", range(2, 5))
        keys = {frozenset(scene.objects), scene.captions["long"]}
        if seen.isdisjoint(keys):
            seen |= keys
            chosen.append(scene)
        if len(chosen) == num:
            return chosen


def write_shards(folder: Path, num_samples: int, samples_per_shard: int, seed: int = 0) -> None:
    """Writes training scenes as WebDataset shards, unless they exist.

    A sample contains `png`, `txt` and `long.txt` (the long caption), `short.txt`, and `json`
    (objects and captions). The same arguments give the same bytes. Raises InputError if the
    folder contains something else.
    """
    check_shards(folder)
    dataset = {
        "num_samples": num_samples,
        "seed": seed,
        "first_index": 0,
        "samples_per_shard": samples_per_shard,
        "caption": "long",
        "split": "train",
        "version": VERSION,
    }
    record = folder / RECORD
    if record.exists() and read_json(record, flag="--out", advice="remove it") != dataset:
        raise InputError(f"{folder} contains another data set: remove it or use another folder")
    missing = {}  # the indices of scenes, by file
    for shard in range(math.ceil(num_samples / samples_per_shard)):
        file = folder / f"{shard:06d}.tar"
        if not file.exists():
            first = shard * samples_per_shard
            missing[file] = range(first, min(first + samples_per_shard, num_samples))
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(record, json.dumps(dataset))
    total = sum(map(len, missing.values()))
    with progress_bar(f"drawing scenes into {folder}", total, unit=" scenes") as bar:
        for file, indices in missing.items():
            with atomic_write(file) as opened, TarWriter(opened, mtime=0) as writer:
                for index in indices:
                    scene = make_scene(seed, index, "train")
                    writer.write({"__key__": f"{index:09d}", **_sample(scene)})
                    bar.update()


def check_shards(folder: Path) -> None:
    """Raises InputError if a folder contains shards that `write_shards` has not written."""
    foreign = sorted(folder.glob("*.tar"))
    if foreign and not (folder / RECORD).exists():
        raise InputError(
            f"--out: {foreign[0]} was not written by this command: remove it or give another folder"
        )


def _sample(scene: Scene) -> dict:
    """Returns the content of a scene's files in a shard, by extension; webdataset encodes it."""
    return {
        "png": scene.image,
        "txt": scene.captions["long"],
        "long.txt": scene.captions["long"],
        "short.txt": scene.captions["short"],
        "json": {"objects": scene.objects, "captions": scene.captions},
    }
