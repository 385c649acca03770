"""Writes the tables of the study `stamps`: `python stamps.py STAMPS OUT`.

STAMPS is /usr/share/tuxpaint/stamps of Debian's tuxpaint-stamps-default. OUT/images then contains
its pictures, and OUT/train-SEED.csv and OUT/test-SEED.csv their captions, for each seed.
"""

import csv
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

SIZE = 128  # pixels: enough for models at 96 px
NUM_TEST_CAPTIONS = 157  # a quarter of all
NUM_TRAINING_PAIRS = 512  # of the rest, so that each seed has as many: eight batches of 64
SEEDS = (*range(100, 110), *range(200, 203), 900, 901)  # stamps, finetune_defaults, pilots


def pairs(stamps: Path) -> Iterator[tuple[Path, str]]:
    """Yields each picture outside symbols/ with its English caption."""
    for picture in sorted(stamps.rglob("*.png")):
        text = picture.with_suffix(".txt")
        if picture.relative_to(stamps).parts[0] != "symbols" and text.exists():
            caption = text.read_text(encoding="utf-8").split("\n")[0].strip()
            if caption:
                yield picture, caption


def square(picture: Path) -> Image.Image:
    """Returns the picture on a white square."""
    with Image.open(picture) as opened:
        shown = opened.convert("RGBA")
    shown.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    result = Image.new("RGBA", (SIZE, SIZE), "white")
    corner = ((SIZE - shown.width) // 2, (SIZE - shown.height) // 2)
    result.alpha_composite(shown, corner)
    return result.convert("RGB")


def split(
    rows: list[tuple[str, str]], seed: int
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Returns training pairs, and test pairs with other captions, each caption once."""
    rng = random.Random(f"stamps {seed}")
    captions = sorted({caption for _, caption in rows})
    held_out = set(rng.sample(captions, NUM_TEST_CAPTIONS))
    train = rng.sample([row for row in rows if row[1] not in held_out], NUM_TRAINING_PAIRS)
    first = {caption: path for path, caption in reversed(rows) if caption in held_out}
    return train, [(path, caption) for caption, path in sorted(first.items())]


def write_table(path: Path, rows: list[tuple[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])


def main(stamps: Path, out: Path) -> None:
    images = out / "images"
    images.mkdir(parents=True)
    rows = []
    for index, (picture, caption) in enumerate(pairs(stamps)):
        path = images / f"{index:03d}.png"
        square(picture).save(path)
        rows.append((str(path), caption))
    for seed in SEEDS:
        train, test = split(rows, seed)
        write_table(out / f"train-{seed}.csv", train)
        write_table(out / f"test-{seed}.csv", test)
    print(f"{len(rows)} pictures in {out}; {len(train)} to train and {len(test)} to test per seed")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
