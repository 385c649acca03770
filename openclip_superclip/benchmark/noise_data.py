"""Pictures of noise, as shards to train on and as a data set to evaluate on: for times, and nothing else."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from webdataset import TarWriter

from ..files import whole_file, write_text

DISTINCT = 64  # pictures, which come again


WORDS = ("a", "picture", "of", "noise", "in", "red", "green", "blue", "grey", "light", "dark", "soft")


def write_noise_shards(folder: Path, num_shards: int, shard_size: int, picture_size: int) -> str:
    """Writes shards of pairs and returns their pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures, generator = _pictures(picture_size), np.random.default_rng(0)
    for shard in range(num_shards):
        with whole_file(folder / f"{shard:05}.tar") as file, TarWriter(file) as tar:
            for number in range(shard_size):
                caption = " ".join(generator.choice(WORDS, generator.integers(3, len(WORDS))))
                picture = pictures[number % DISTINCT]
                tar.write({"__key__": f"{shard:05}-{number:06}", "jpg": picture, "txt": caption})
    return f"{folder}/{{00000..{num_shards - 1:05}}}.tar"


def write_noise_classes(folder: Path, num_pictures: int, picture_size: int) -> str:
    """Writes a data set for zero-shot in CLIP_benchmark's layout below `folder`, and returns its name."""
    test = folder / "noise" / "test"
    test.mkdir(parents=True, exist_ok=True)
    write_text(test.parent / "classnames.txt", "\n".join(WORDS[5:]) + "\n")
    write_text(test.parent / "zeroshot_classification_templates.txt", "a picture of {c}\n")
    write_text(test / "nshards.txt", "1\n")
    pictures, num_classes = _pictures(picture_size), len(WORDS[5:])
    with whole_file(test / "0.tar") as file, TarWriter(file) as tar:
        for number in range(num_pictures):
            tar.write({"__key__": f"{number:06}", "jpg": pictures[number % DISTINCT], "cls": number % num_classes})
    return "noise"


def _pictures(size: int) -> list[bytes]:
    generator, written = np.random.default_rng(0), []
    for _ in range(DISTINCT):
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(buffer, "JPEG")
        written.append(buffer.getvalue())
    return written
