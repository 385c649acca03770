"""Writes the training scenes of this study: `python make_scenes.py OUT`.

OUT/CAPTIONS-FREQUENCIES-SEED then contains 20,480 scenes as WebDataset shards, for CAPTIONS `clean`
or `careless`, FREQUENCIES `equal` or `zipf`, and each seed of the study.
"""

import itertools
import random
import sys
from bisect import bisect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from openclip_superclip.lab.demo.scenes import (
    DESIGNERS,
    NAMES,
    Scene,
    draw_image,
    split_of,
    write_scenes,
)

SEEDS = range(200, 206)
NUM_SCENES, SCENES_PER_SHARD = 20_480, 1024
VERSION = 1  # raise it if the same seed gives other scenes


class Objects:
    """The 100 objects of the demo's scenes, with the frequencies of a seed."""

    def __init__(self, frequencies: str, seed: int):
        self.names = list(NAMES)
        random.Random(f"frequencies {VERSION} {seed}").shuffle(self.names)
        weights = [1] * len(self.names)
        if frequencies == "zipf":  # Zipf-Mandelbrot law: a factor of 34 from first to last
            weights = [10**9 // (rank + 2) for rank in range(1, len(self.names) + 1)]
        self.cumulative = list(itertools.accumulate(weights))

    def draw(self, rng: random.Random, count: int) -> list[str]:
        """Returns different objects of a set that belongs to the training scenes."""
        while True:
            drawn: dict[str, None] = {}  # in the order in which they are drawn
            while len(drawn) < count:
                drawn[self.names[bisect(self.cumulative, rng.randrange(self.cumulative[-1]))]] = (
                    None
                )
            if count == 1 or split_of(list(drawn)) == "train":
                return list(drawn)

    def careless_names(self, rng: random.Random, shown: Sequence[str]) -> list[str]:
        """Returns each object with probability 2/3, and at least one; for one scene in five, a
        wrong one is added or replaces one of them."""
        named = [name for name in shown if rng.randrange(3)] or [rng.choice(shown)]
        if not rng.randrange(5):
            wrong = shown[0]
            while wrong in shown:
                (wrong,) = self.draw(rng, 1)
            index = rng.randrange(len(named))
            named[index : index + rng.randrange(2)] = [wrong]
        return named


def scene(objects: Objects, captions: str, seed: int, index: int) -> Scene:
    """Returns a scene of one to four objects. Its image is the same for both kinds of captions."""
    rng = random.Random(f"{VERSION} {seed} {index}")
    shown = objects.draw(rng, rng.randrange(1, 5))
    image, layers = draw_image(np.random.default_rng((seed, index)), shown, DESIGNERS)
    named = objects.careless_names(rng, shown) if captions == "careless" else list(shown)
    rng.shuffle(named)
    caption = ", ".join(named)
    return Scene(image, shown, {"long": caption, "short": caption}, layers)


def main(out: Path) -> None:
    for captions, frequencies, seed in itertools.product(
        ("clean", "careless"), ("equal", "zipf"), SEEDS
    ):
        facts = {
            "captions_and_frequencies": VERSION,
            "seed": seed,
            "num_samples": NUM_SCENES,
            "samples_per_shard": SCENES_PER_SHARD,
        }
        objects = Objects(frequencies, seed)
        shown = (scene(objects, captions, seed, index) for index in range(NUM_SCENES))
        write_scenes(out / f"{captions}-{frequencies}-{seed}", facts, shown, "long")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
