"""Composes scenes of emoji with captions, and writes them as WebDataset shards."""

import csv
import io
import itertools
import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm
from webdataset import TarWriter

from ..errors import InputError
from ..files import read_json, whole_file, whole_output, write_text

TILES = Path(__file__).parent / "tiles"
Designers = tuple[str, ...]  # whose drawings scenes show
DESIGNERS = ("google", "twitter")
UNSEEN_DESIGNERS = ("fluent",)  # not in training scenes; they drew all objects except one
SECOND = "second/"  # prefix of a designer: use another 100 objects
SECOND_DESIGNERS = (f"{SECOND}google", f"{SECOND}twitter")


@cache
def emoji() -> list[dict[str, str]]:
    """Returns the rows of tiles/emoji.tsv: object, demo (1 or 2, the set of 100 objects), name,
    keywords."""
    with (TILES / "emoji.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@cache
def drawings(designer: str) -> dict[str, bytes]:
    """Returns a designer's drawings as PNG bytes, by object."""
    with zipfile.ZipFile(TILES / f"{designer.removeprefix(SECOND)}.zip") as archive:
        return {
            Path(name).stem.replace("-", " "): archive.read(name) for name in archive.namelist()
        }


@cache
def names_of(designers: Designers) -> list[str]:
    """Returns the names of the 100 objects in scenes of these designers."""
    draw = "2" if designers[0].startswith(SECOND) else "1"
    return sorted(row["object"] for row in emoji() if row["demo"] == draw)


NAMES = names_of(DESIGNERS)
SPLITS = ("train", "tune", "test")
VERSION = 1  # of the scenes: increase it if the same seed gives different bytes
IMAGE_SIZE = 64
QUADRANT = 32
CORNERS = ((0, 0), (QUADRANT, 0), (0, QUADRANT), (QUADRANT, QUADRANT))


class Layer(NamedTuple):
    """An object's name, its transformed RGBA drawing, and the position of the drawing's top left
    corner."""

    name: str
    drawing: Image.Image
    left: int
    top: int


class Scene(NamedTuple):
    """An image, the names of its objects, its captions by kind, and its layers from bottom to
    top."""

    image: Image.Image
    objects: list[str]
    captions: dict[str, str]
    layers: list[Layer]


def split_of(objects: Sequence[str]) -> str:
    """Returns the split of a set of two or more objects: 10 % of the sets are "tune", 10 % are
    "test".

    Single objects occur in all splits, with different drawings, positions and backgrounds.
    """
    part = zlib.crc32(", ".join(sorted(objects)).encode()) % 10
    return {0: "tune", 1: "test"}.get(part, "train")


@lru_cache(maxsize=10_000)
def tile(
    designer: str, name: str, size: int, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """Returns an RGBA drawing of `size` by `size` pixels."""
    with Image.open(io.BytesIO(drawings(designer)[name])) as image:
        return image.convert("RGBA").resize((size, size), resample)


def make_scene(
    seed: int,
    index: int,
    split: str,
    num_objects: Sequence[int] = range(1, 5),
    designers: Designers = DESIGNERS,
) -> Scene:
    """Returns scene number `index` of a split, an RGB image of 64 by 64 pixels. Deterministic in
    its arguments.

    The number of objects is drawn from `num_objects` (values from 1 to 4). Captions: "long" names
    all objects, "short" names one, and "raw" a random subset.
    """
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    count = num_objects[rng.integers(len(num_objects))]
    objects = _draw_objects(rng, count, split, designers)
    image, layers = draw_image(rng, objects, designers)

    def caption(length: int) -> str:
        return ", ".join(objects[index] for index in rng.permutation(count)[:length])

    captions = {
        "long": caption(count),
        "short": caption(1),
        "raw": caption(rng.integers(count) + 1),
    }
    return Scene(image, objects, captions, layers)


def _draw_objects(
    rng: np.random.Generator, count: int, split: str, designers: Designers
) -> list[str]:
    """Returns random objects of a split that all the designers have drawn."""
    names = names_of(designers)
    drawn = drawn_by(designers)
    while True:
        objects = [names[index] for index in rng.choice(len(names), count, replace=False)]
        is_of_split = count == 1 or split_of(objects) == split
        if is_of_split and drawn.issuperset(objects):
            return objects


@cache
def drawn_by(designers: Designers) -> frozenset[str]:
    """Returns the objects that all the designers have drawn."""
    return frozenset(names_of(designers)).intersection(*map(drawings, designers))


def draw_image(
    rng: np.random.Generator, objects: Sequence[str], designers: Designers = DESIGNERS
) -> tuple[Image.Image, list[Layer]]:
    """Draws objects on a light background, one per quadrant, each by a random designer, scaled,
    rotated and shifted."""
    layers = []
    count = len(objects)
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), tuple(rng.integers(200, 256, 3).tolist()))
    designers = rng.choice(designers, count).tolist()
    sizes = rng.integers(22, 31, count).tolist()
    angles = rng.normal(0, 8, count).tolist()  # degrees
    shifts = rng.random((count, 2)).tolist()
    corners = [CORNERS[index] for index in rng.permutation(len(CORNERS))[:count]]
    for name, designer, size, angle, shift, corner in zip(
        objects, designers, sizes, angles, shifts, corners, strict=True
    ):
        drawing = tile(designer, name, size).rotate(angle, Image.Resampling.BILINEAR)
        left = corner[0] + int(shift[0] * (QUADRANT - size + 1))
        top = corner[1] + int(shift[1] * (QUADRANT - size + 1))
        image.paste(drawing, (left, top), drawing)
        layers.append(Layer(name, drawing, left, top))
    return image, layers


def scenes(num: int, seed: int = 0, split: str = "train", **options) -> Iterator[Scene]:
    """Iterates over the first `num` scenes of a split; the options are those of `make_scene`."""
    return (make_scene(seed, index, split, **options) for index in range(num))


def different_scenes(
    num: int, seed: int, split: str, designers: Designers = DESIGNERS
) -> list[Scene]:
    """Returns the first `num` scenes of a split with at least two objects, and with different
    sets of objects."""
    numbers = itertools.count()
    return different(num, (make_scene(seed, n, split, range(2, 5), designers) for n in numbers))


def different(num: int, shown: Iterable[Scene], caption: str = "long") -> list[Scene]:
    """Returns the first `num` scenes with different sets of objects and different captions of a
    kind."""
    chosen = []
    seen = set()
    for scene in shown:
        keys = {frozenset(scene.objects), scene.captions[caption]}
        if seen.isdisjoint(keys):
            seen |= keys
            chosen.append(scene)
        if len(chosen) == num:
            break
    return chosen


def write_shards(
    folder: Path,
    num_samples: int,
    seed: int,
    samples_per_shard: int,
    caption: str = "long",
    designers: Designers = DESIGNERS,
) -> None:
    """Writes training scenes as WebDataset shards.

    A sample contains `png`, `txt` (the caption of the given kind), `long.txt`, `short.txt` and
    `json` (objects and captions). The same arguments give the same bytes.
    """
    dataset = {
        "num_samples": num_samples,
        "seed": seed,
        "first_index": 0,
        "samples_per_shard": samples_per_shard,
        "caption": caption,
        "split": "train",
        "version": VERSION,
    }
    if designers != DESIGNERS:
        dataset["designers"] = list(designers)
    write_scenes(folder, dataset, scenes(num_samples, seed, designers=designers), caption)


def write_scenes(folder: Path, dataset: dict, shown: Iterable[Scene], caption: str) -> None:
    """Writes scenes as shards, unless they exist.

    `dataset` are facts that identify it, including `num_samples` and `samples_per_shard`; `caption`
    is the kind of caption for `txt`. Raises InputError if the folder contains another data set.
    """
    num_samples = dataset["num_samples"]
    samples_per_shard = dataset["samples_per_shard"]
    record = folder / "dataset.json"  # written last: if it exists, all shards do
    if record.exists():
        if read_json(record, flag="--out", advice="remove it") != dataset:
            raise InputError(f"{folder} contains another data set: remove it or use another folder")
        return
    folder.mkdir(parents=True, exist_ok=True)
    remaining = numbered(shown, num_samples, f"scenes for {folder}")
    for shard in range(math.ceil(num_samples / samples_per_shard)):
        with whole_file(folder / f"{shard:06d}.tar") as file, TarWriter(file, mtime=0) as writer:
            for index, scene in itertools.islice(remaining, samples_per_shard):
                writer.write({"__key__": f"{index:09d}", **sample(scene, caption)})
    write_text(record, json.dumps(dataset))


def numbered(shown: Iterable[Scene], total: int, title: str) -> Iterator[tuple[int, Scene]]:
    """Iterates over scenes and their numbers under a bar."""
    return enumerate(tqdm(shown, title, total, unit=" scenes", disable=None))


def sample(scene: Scene, caption: str) -> dict:
    """Returns the content of a scene's files in a shard, by extension; webdataset encodes it."""
    return {
        "png": scene.image,
        "txt": scene.captions[caption],
        "long.txt": scene.captions["long"],
        "short.txt": scene.captions["short"],
        "json": {"objects": scene.objects, "captions": scene.captions},
    }


OBJECT_SIZE = 60.0  # pixels at a distance of one metre
BACKGROUND_DEPTH = 4.0  # metres
OPAQUE = 128  # of 255


def write_dense_scenes(
    folder: Path, num_scenes: int = 300, num_train_scenes: int = 1000
) -> list[Path]:
    """Writes two data sets for `superclip evaluate --suite dense`, unless they exist, and returns
    their folders.

    demo_masks: images and classes in ADE20k's layout; class 1 is the background.
    demo_depth: the same images, with depths in millimetres as 16-bit PNG.

    Masks are exact, because objects never overlap. All objects are assumed to have the same size,
    so larger drawings are nearer. The sets of objects in test scenes do not occur in training
    scenes.
    """
    masks = folder / "demo_masks"
    depths = folder / "demo_depth"
    record = folder / "dense_scenes.txt"  # written last: if it exists, all files do
    facts = (
        f"version {VERSION}, seed 0: {num_scenes} test scenes, {num_train_scenes} train scenes\n"
    )
    if record.is_file() and record.read_text() == facts:
        return [masks, depths]
    for data_set in (masks, depths):
        if data_set.exists():
            raise InputError(
                f"{data_set} exists, and this version of the demo did not write it: remove it, or "
                "give another folder"
            )
    with (
        whole_output(masks, overwrite=False) as new_masks,
        whole_output(depths, overwrite=False) as new_depths,
    ):
        _write_dense_split("train", num_train_scenes, new_masks, new_depths)
        _write_dense_split("test", num_scenes, new_masks, new_depths)
        write_text(new_masks / "classes.txt", "\n".join(["background", *NAMES]) + "\n")
    write_text(record, facts)
    return [masks, depths]


def _write_dense_split(split: str, number: int, masks: Path, depths: Path) -> None:
    ade20k_split = "training" if split == "train" else "validation"
    shown = scenes(number, split=split, num_objects=(2, 3, 4))
    for index, scene in numbered(shown, number, f"dense scenes, {split}"):
        classes, depth = pixel_labels(scene)
        images = {
            masks / "images" / ade20k_split: scene.image,
            masks / "annotations" / ade20k_split: Image.fromarray(classes),
            depths / split / "images": scene.image,
            depths / split / "depths": Image.fromarray(depth),
        }
        for folder, image in images.items():
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{index:06d}.png")


def pixel_labels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Returns the class, uint8 [64, 64], and the depth in millimetres, uint16 [64, 64], of each
    pixel.

    Class 1 is the background; the names follow in order. A pixel belongs to a drawing if its alpha
    is at least half.
    """
    classes = np.ones((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    depth = np.full((IMAGE_SIZE, IMAGE_SIZE), round(1000 * BACKGROUND_DEPTH), np.uint16)
    for layer in scene.layers:
        opaque = np.array(layer.drawing)[..., 3] >= OPAQUE
        height, width = opaque.shape
        area = np.s_[layer.top : layer.top + height, layer.left : layer.left + width]
        classes[area][opaque] = 2 + NAMES.index(layer.name)
        depth[area][opaque] = round(1000 * OBJECT_SIZE / width)
    return classes, depth
