"""Small data sets: noise with captions, colours with classes, and coloured
squares that a model can learn to name."""

import csv
import io
import os
import random
import shutil

import numpy as np
import webdataset
from PIL import Image

from openclip_superclip.demo.scenes import NAMES, different_scenes, scenes

from . import WORDS

NUM_SHARDS, SHARD_SIZE = 16, 16
PATTERN = "{000000..000015}.tar"
CLASSES = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
COLOURS = {
    "red": (220, 30, 30),
    "blue": (30, 60, 220),
    "green": (30, 170, 60),
    "yellow": (240, 220, 40),
}
CORNERS = [(0, 0), (0, 1), (1, 0), (1, 1)]  # row, column of a quarter
Image.effect_noise((32, 32), 9).save(noise := io.BytesIO(), "png")
IMAGE = noise.getvalue()
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"


class MakesFolder:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.makedirs, (self.folder, 0o777, True)


def write_tar(file, samples):
    """Writes a shard of samples, members by extension, numbered unless they
    name their key."""
    with webdataset.TarWriter(str(file)) as tar:
        for number, sample in enumerate(samples):
            tar.write({"__key__": f"{number:03}"} | sample)


def write_shards(folder, num_shards=NUM_SHARDS):
    """Writes shards of images of noise with captions, once, and returns
    their brace pattern."""
    pattern = f"{folder}/{{000000..{num_shards - 1:06}}}.tar"
    if folder.exists():
        return pattern
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for shard in range(num_shards):
        samples = []
        for number in range(SHARD_SIZE):
            image = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
            caption = " ".join(rng.choice(WORDS, rng.integers(1, 6)))
            samples.append({"__key__": f"{shard:06}{number:03}", "png": image, "txt": caption})
        write_tar(folder / f"{shard:06}.tar", samples)
    return pattern


def write_colours(folder, splits=("test",)):
    """Writes 48 noisy images a split of three colours, a separable data set
    in CLIP_benchmark's layout."""
    rng = np.random.default_rng(0)
    for split in splits:
        (folder / split).mkdir(parents=True)
        samples = []
        for label in [0, 1, 2] * 16:
            pixels = rng.normal(list(CLASSES.values())[label], 20, (32, 32, 3)).clip(0, 255)
            samples.append({"png": Image.fromarray(pixels.astype(np.uint8)), "cls": label})
        write_tar(folder / split / "0.tar", samples)
        (folder / split / "nshards.txt").write_text("1\n")
    (folder / "classnames.txt").write_text("\n".join(CLASSES))
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\nthe {c}\n")
    return folder


def write_scenes(folder, num_scenes, num_probe_scenes=10):
    """Writes demo scenes as two data sets in CLIP_benchmark's layout: `objects`,
    each with the index of its name, and `groups`, each with its caption."""
    singles = {"test": num_scenes, "train": num_probe_scenes}
    shown = {
        f"objects/{split}": [
            {"png": scene.image, "cls": NAMES.index(scene.objects[0])}
            for scene in scenes(number, split=split, num_objects=(1,))
        ]
        for split, number in singles.items()
    }
    shown["groups/test"] = [
        {"png": scene.image, "txt": scene.captions["long"]}
        for scene in different_scenes(num_scenes)
    ]
    for split, samples in shown.items():
        (folder / split).mkdir(parents=True)
        write_tar(folder / split / "0.tar", samples)
        (folder / split / "nshards.txt").write_text("1\n")
    (folder / "objects/classnames.txt").write_text("\n".join(NAMES))
    (folder / "objects/zeroshot_classification_templates.txt").write_text("{c}\n")
    (folder / "groups/dataset_type.txt").write_text("retrieval\n")


def write_imagenet(csv_data, folder):
    """Writes the folder of --imagenet-val with five classes of one image
    each, and returns it."""
    for index, word in enumerate(WORDS[:5]):
        (folder / word).mkdir(parents=True)
        shutil.copy(csv_data.parent / f"{index}.png", folder / word)
    return folder


def squares(placed, size=32):
    """An image of coloured squares, each in its quarter."""
    image, half = Image.new("RGB", (size, size), (235, 235, 235)), size // 2
    for name, (row, column) in placed.items():
        box = (column * half + 2, row * half + 2, (column + 1) * half - 2, (row + 1) * half - 2)
        image.paste(COLOURS[name], box)
    return image


def write_images(folder, number, seed):
    """Writes images of one or two squares, and returns them with
    captions."""
    rng, pairs = random.Random(seed), []
    folder.mkdir(parents=True)
    for index in range(number):
        num_squares = rng.choice([1, 2])
        placed = dict(
            zip(
                rng.sample(list(COLOURS), num_squares),
                rng.sample(CORNERS, num_squares),
                strict=True,
            )
        )
        squares(placed).save(folder / f"{index}.png")
        pairs.append((folder / f"{index}.png", " ".join(placed)))
    return pairs


def write_table(file, pairs):
    """Writes pairs as a table."""
    with open(file, "w", newline="") as opened:
        csv.writer(opened, lineterminator="\n").writerows([["image", "caption"], *pairs])
