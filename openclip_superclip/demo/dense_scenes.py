"""The demo's scenes with the class and the depth of every pixel, for `superclip evaluate --suite dense`.

A scene is composed, so its masks are exact. Its objects lie in quarters of their own and never overlap, so the order in
which they are pasted shows nowhere. Depth follows what does show: all objects are taken to be of one size, so a larger
drawing is nearer, 60 pixels at one metre; the background is at four metres.
"""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..atomic_files import write_text
from .scenes import IMAGE_SIZE, NAMES, VERSION, Scene, scenes

OBJECT_SIZE = 60.0  # pixels at a distance of one metre
BACKGROUND_DEPTH = 4.0  # metres
OPAQUE = 128  # of 255
SPLITS = {"train": "training", "test": "validation"}  # as ADE20k calls them


def write_dense_scenes(folder: Path, num_scenes: int = 300, num_train_scenes: int = 1000, seed: int = 0) -> list[Path]:
    """Writes two data sets and returns their folders; what is there already is left as it is.

    demo_masks: pictures and classes in ADE20k's layout, 1 the background. demo_depth: the same pictures and, as 16-bit
    PNG, their depths in millimetres. The test scenes show sets of objects that no training scene shows.
    """
    masks, depths = folder / "demo_masks", folder / "demo_depth"
    record = folder / "dense_scenes.txt"  # written last, so it vouches for all
    facts = f"version {VERSION}, seed {seed}: {num_scenes} test scenes, {num_train_scenes} train scenes\n"
    if record.is_file() and record.read_text() == facts:
        return [masks, depths]
    for part in (masks, depths):
        shutil.rmtree(part, ignore_errors=True)
    for split, number in (("train", num_train_scenes), ("test", num_scenes)):
        places = [
            masks / "images" / SPLITS[split], masks / "annotations" / SPLITS[split], depths / split / "images",
            depths / split / "depths",
        ]  # fmt: skip
        for place in places:
            place.mkdir(parents=True)
        shown = scenes(number, seed, split, num_objects=(2, 3, 4))
        for index, scene in enumerate(tqdm(shown, total=number, desc=f"{folder}, {split}", unit=" scenes")):
            classes, depth = pixel_labels(scene)
            pictures = [scene.image, Image.fromarray(classes), scene.image, Image.fromarray(depth)]
            for place, picture in zip(places, pictures, strict=True):
                picture.save(place / f"{index:06d}.png")
    write_text(masks / "classes.txt", "\n".join(["background", *NAMES]) + "\n")
    write_text(record, facts)
    return [masks, depths]


def pixel_labels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Returns the class of each pixel, uint8 [64, 64], 1 the background and then the names in order, and its depth in
    millimetres, uint16 [64, 64]. A pixel that is half a drawing or more is the drawing's."""
    classes = np.ones((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    depth = np.full((IMAGE_SIZE, IMAGE_SIZE), round(1000 * BACKGROUND_DEPTH), np.uint16)
    for layer in scene.layers:
        opaque = np.zeros((IMAGE_SIZE, IMAGE_SIZE), bool)
        alpha = np.array(layer.drawing)[..., 3] >= OPAQUE
        opaque[layer.top : layer.top + alpha.shape[0], layer.left : layer.left + alpha.shape[1]] = alpha
        classes[opaque] = 2 + NAMES.index(layer.name)
        depth[opaque] = round(1000 * OBJECT_SIZE / layer.drawing.size[0])
    return classes, depth
