"""Which of a run's checkpoints are whole, and which may go."""

import re
import zipfile
from pathlib import Path

import torch
from tqdm import tqdm

from ..checkpoints.checkpoint import is_complete, read_checkpoint
from ..errors import InputError
from ..planning.plan import NUM_KEPT, Plan

CHUNK = 1 << 20  # bytes


def checkpoints(folder: Path) -> dict[int, Path]:
    """Returns the checkpoints in a run's folder `checkpoints`, epoch: file, oldest first."""
    names = ((re.fullmatch(r"epoch_(\d+)\.pt", path.name), path) for path in folder.glob("epoch_*.pt"))
    return dict(sorted((int(name[1]), path) for name, path in names if name))


def is_whole(path: Path) -> bool:
    """Returns whether a checkpoint is complete and every byte in it what was written: reads all of it."""
    size = path.stat().st_size
    try:
        with (
            zipfile.ZipFile(path) as archive,
            tqdm(total=size, desc=f"reading {path.name}", unit="B", unit_scale=True, disable=None) as progress,
        ):
            for member in archive.infolist():
                with archive.open(member) as file:
                    while chunk := file.read(CHUNK):
                        progress.update(len(chunk))
    except Exception:  # a checksum is wrong, there is no list of contents, or it names what cannot be
        return False
    return True


def set_damaged_aside(folder: Path) -> list[Path]:
    """Renames the newest checkpoints until one is whole, so that OpenCLIP's `--resume latest` finds that one.

    Returns the new names, newest first.
    """
    damaged = []
    for path in reversed(checkpoints(folder).values()):
        if is_whole(path):
            break
        damaged.append(path.rename(path.with_name(f"{path.name}.damaged")))
    return damaged


def set_ruined_aside(folder: Path) -> list[Path]:
    """Renames the newest checkpoints until one holds numbers alone, and returns the new names, newest first."""
    ruined = []
    for path in reversed(checkpoints(folder).values()):
        if holds_numbers(path):
            break
        ruined.append(path.rename(path.with_name(f"{path.name}.ruined")))
    return ruined


def holds_numbers(path: Path) -> bool:
    """Returns whether no weight of a checkpoint is NaN or infinite."""
    try:
        weights = read_checkpoint(path).weights.values()
    except InputError:
        return False
    return all(bool(torch.isfinite(weight).all()) for weight in weights if weight.is_floating_point())


def remove_cut(folder: Path) -> list[Path]:
    """Removes the newest checkpoints that were not written to their end, and returns them: what fills a full disk."""
    cut = []
    for path in reversed(checkpoints(folder).values()):
        if is_complete(path):
            break
        path.unlink()
        cut.append(path)
    return cut


def newest(folder: Path) -> int:
    """Returns the epoch of the newest complete checkpoint, 0 where there is none."""
    return next((epoch for epoch, path in reversed(checkpoints(folder).items()) if is_complete(path)), 0)


def prune(folder: Path, plan: Plan) -> list[Path]:
    """Removes the checkpoints that are neither among the newest nor to be kept, and returns them."""
    complete = [epoch for epoch, path in checkpoints(folder).items() if is_complete(path)]
    found = checkpoints(folder)
    old = [found[epoch] for epoch in complete[:-NUM_KEPT] if not plan.keeps(epoch)]
    for path in old:
        path.unlink()
    return old
