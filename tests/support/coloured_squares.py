"""Images of coloured squares with captions that name them, and a SuperCLIP that has learned the names."""

import csv
import random
from pathlib import Path

from PIL import Image

from .models import write_model
from .training_runs import run_ranks, superclip_train

COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 220), "green": (30, 170, 60), "yellow": (240, 220, 40)}
CORNERS = [(0, 0), (0, 1), (1, 0), (1, 1)]  # row, column of a quarter


def squares(placed: dict[str, tuple[int, int]], size: int = 32) -> Image.Image:
    """An image of coloured squares, each in its quarter."""
    image, half = Image.new("RGB", (size, size), (235, 235, 235)), size // 2
    for name, (row, column) in placed.items():
        box = (column * half + 2, row * half + 2, (column + 1) * half - 2, (row + 1) * half - 2)
        image.paste(COLOURS[name], box)
    return image


def write_images(folder: Path, number: int, seed: int) -> list[tuple[Path, str]]:
    """Writes images of one or two squares, and returns them with captions."""
    rng, pairs = random.Random(seed), []
    folder.mkdir(parents=True)
    for index in range(number):
        num_squares = rng.choice([1, 2])
        placed = dict(zip(rng.sample(list(COLOURS), num_squares), rng.sample(CORNERS, num_squares), strict=True))
        squares(placed).save(folder / f"{index}.png")
        pairs.append((folder / f"{index}.png", " ".join(placed)))
    return pairs


def write_table(file: Path, pairs: list[tuple[Path, str]]) -> None:
    """Writes pairs as a table."""
    with open(file, "w", newline="") as opened:
        csv.writer(opened, lineterminator="\n").writerows([["image", "caption"], *pairs])


def train(folder: Path) -> Path:
    """Trains on 256 images, six times, and returns the run's folder; the model's configuration is in `model`."""
    write_table(folder / "train.csv", write_images(folder / "trained", 256, 0))
    (run,) = run_ranks(
        superclip_train, "--model", write_model(folder / "model", text={"layers": 1}), "--superclip", "--train-data",
        folder / "train.csv", "--csv-separator", ",", "--csv-img-key", "image", "--csv-caption-key", "caption",
        "--batch-size", 32, "--epochs", 6, "--workers", 0, "--lr", 3e-3, "--warmup", 5, "--device", "cpu",
        "--precision", "fp32", "--name", "run", "--save-frequency", 6, cwd=folder,
    )  # fmt: skip
    assert run.returncode == 0, run.output[-3000:]
    return folder / "logs/run"
