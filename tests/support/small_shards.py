"""Shards of a few images of noise, each with a caption."""

import io
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from support import WORDS

NUM_SHARDS, SHARD_SIZE = 16, 16
PATTERN = "{000000..000015}.tar"


def write_shards(folder: Path, num_shards: int = NUM_SHARDS) -> str:
    """Writes them, once, and returns their brace pattern."""
    pattern = f"{folder}/{{000000..{num_shards - 1:06}}}.tar"
    if folder.exists():
        return pattern
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for shard in range(num_shards):
        with webdataset.TarWriter(f"{folder}/{shard:06}.tar") as tar:
            for sample in range(SHARD_SIZE):
                image = io.BytesIO()
                Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(image, "png")
                caption = " ".join(rng.choice(WORDS, rng.integers(1, 6)))
                tar.write({"__key__": f"{shard:06}{sample:03}", "png": image.getvalue(), "txt": caption})
    return pattern
