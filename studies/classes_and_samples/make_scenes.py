"""Writes the training scenes of this study: `python make_scenes.py OUT`.

OUT/OBJECTS-SCENES-SEED then contains scenes as WebDataset shards, for OBJECTS objects (25 or 100),
each of which occurs in SCENES scenes on average (128 or 512), and each seed of the study.
"""

import itertools
import random
import sys
from pathlib import Path

import numpy as np
from openclip_superclip.lab.demo.scenes import (
    DESIGNERS,
    NAMES,
    UNSEEN_DESIGNERS,
    Scene,
    draw_image,
    drawn_by,
    split_of,
    write_scenes,
)

SEEDS = range(210, 216)
FEW, ALL = 25, len(NAMES)
RARE, FREQUENT = 128, 512  # scenes of each object, on average
OBJECTS_PER_SCENE = 2.5  # on average: one to four
SCENES_PER_SHARD = 256
VERSION = 1  # raise it if the same seed gives other scenes


def few_objects(seed: int) -> list[str]:
    """Returns the seed's 25 objects, sorted; all designers have drawn them."""
    drawn = drawn_by((*DESIGNERS, *UNSEEN_DESIGNERS))
    names = [name for name in NAMES if name in drawn]
    return sorted(random.Random(f"objects {VERSION} {seed}").sample(names, FEW))


def scene(names: list[str], seed: int, index: int) -> Scene:
    """Returns a scene of one to four of the objects, with a complete and correct caption."""
    rng = random.Random(f"{VERSION} {len(names)} {seed} {index}")
    count = rng.randrange(1, 5)
    shown = rng.sample(names, count)
    while count > 1 and split_of(shown) != "train":
        shown = rng.sample(names, count)
    image, layers = draw_image(np.random.default_rng((seed, len(names), index)), shown, DESIGNERS)
    caption = ", ".join(rng.sample(shown, count))
    return Scene(image, shown, {"long": caption, "short": caption}, layers)


def main(out: Path) -> None:
    for num_objects, per_object, seed in itertools.product((FEW, ALL), (RARE, FREQUENT), SEEDS):
        names = few_objects(seed) if num_objects == FEW else NAMES
        num_scenes = round(num_objects * per_object / OBJECTS_PER_SCENE)
        facts = {
            "classes_and_samples": VERSION,
            "seed": seed,
            "num_samples": num_scenes,
            "samples_per_shard": SCENES_PER_SHARD,
        }
        shown = (scene(names, seed, index) for index in range(num_scenes))
        write_scenes(out / f"{num_objects}-{per_object}-{seed}", facts, shown, "long")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
