"""Reads what a training measured on validation data after each epoch, and finds the best epoch."""

import json
import math
import re
import statistics
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, listed
from .trainer_files import checkpoints, is_complete

SCORE = re.compile(r"(image_to_text_R@1|text_to_image_R@1|imagenet.*-top1)$")


@dataclass(frozen=True)
class BestEpoch:
    """The epoch with the highest validation score."""

    epoch: int
    score: float  # percent

    def __str__(self) -> str:
        return f"best epoch on the validation data: {self.epoch}, with {self.score:.1f} % R@1"


def validation_rows(run: Path) -> list[dict]:
    """Returns the numbers in each line of OpenCLIP's results.jsonl in a run's folder; {} for a line
    that was cut."""
    file = run / "checkpoints" / "results.jsonl"
    rows = []
    for line in file.read_text(errors="replace").splitlines() if file.is_file() else ():
        try:
            # a crash may have cut an object before this one
            row = json.loads("{" + line.rpartition("{")[2])
        except ValueError:
            row = {}
        rows.append({name: value for name, value in row.items() if isinstance(value, int | float)})
    return rows


def validation_scores(run: Path, epoch: int | None = None) -> dict[str, float]:
    """Returns what the training itself measured at an epoch, by default the last one (--val-data,
    --imagenet-val), in percent."""
    rows = validation_rows(run)
    if epoch is None and rows:
        epoch = rows[-1].get("epoch")  # of the last line, unless that was cut
    return {
        name: 100 * value
        for row in rows
        if row.get("epoch") == epoch
        for name, value in row.items()
        if SCORE.match(name)
    }


def best_epoch(run: Path) -> BestEpoch | None:
    """Returns the epoch with the highest mean R@1 of both directions; of equal epochs, the one with
    the lowest validation loss. None for a run without retrieval: OpenCLIP does not record the epoch
    of ImageNet accuracy.
    """
    by_epoch = {}
    for row in validation_rows(run):
        if row.get("epoch"):  # 0 is before training
            by_epoch.setdefault(row["epoch"], {}).update(row)
    ranks = {}
    for epoch, row in by_epoch.items():
        both = (row.get(name, math.nan) for name in ("image_to_text_R@1", "text_to_image_R@1"))
        values = list(filter(math.isfinite, both))
        if values:
            loss = row.get("clip_val_loss", math.inf)
            ranks[epoch] = (statistics.mean(values), -loss, -epoch)
    if not ranks:
        return None
    best = max(ranks, key=ranks.get)
    return BestEpoch(best, 100 * ranks[best][0])


def best_checkpoint(run: Path) -> Path:
    """Returns the checkpoint of a run's best epoch; InputError if there is none."""
    if not run.is_dir():
        raise InputError(f"--best: there is no folder {run}; expected the folder of a run")
    best = best_epoch(run)
    if best is None:
        raise InputError(
            f"--best: {run} has no retrieval scores on validation data; expected the folder of a "
            "run that was trained with --val-data or --val-fraction"
        )
    there = checkpoints(run / "checkpoints")
    file = there.get(best.epoch)
    if file is None or not is_complete(file):
        raise InputError(
            f"--best: {best}, but its checkpoint was not saved (--save-frequency) or has been "
            f"removed; give one of {listed(there.values()) or 'another run'}"
        )
    return file
