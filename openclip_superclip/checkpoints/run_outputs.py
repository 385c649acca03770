"""What is known of the run behind a checkpoint: its options and its measures."""

import ast
import json
import os
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from ..errors import InputError
from . import RECORD_BESIDE, is_sharded

if TYPE_CHECKING:
    from .checkpoint import Checkpoint


# What a mean of checkpoints and an export's head keep of the options: what tells the model, and how it was trained.
KEPT = (
    "model", "pretrained", "force_quick_gelu", "force_naflex_vision", "force_image_size", "force_context_length",
    "image_mean", "image_std", "image_interpolation", "image_resize_mode", "superclip_idf",
)  # fmt: skip


HEAD_OPTIONS = {"superclip_idf"}  # of these, what the class head alone needs


class RunRecord(NamedTuple):
    """Both empty where a checkpoint stands alone."""

    options: dict  # of params.txt, under the names of the parsed command line
    measures: dict[str, float]  # of results.jsonl, of the checkpoint's epoch


def run_behind(checkpoint: "Checkpoint") -> RunRecord:
    """Returns what the file itself says of the run, or what OpenCLIP's trainer wrote beside it."""
    if checkpoint.options:
        return RunRecord(checkpoint.options, {})
    return read_run_record(checkpoint.path, checkpoint.epoch)


def options_to_keep(checkpoint: "Checkpoint") -> dict:
    """Returns the options that another file is to remember, the model's folder by its whole path."""
    from open_clip.constants import HF_CONFIG_NAME

    options = {name: value for name, value in run_behind(checkpoint).options.items() if name in KEPT}
    model = str(options.get("model", ""))
    if (checkpoint.path / HF_CONFIG_NAME).is_file():
        model = f"local-dir:{checkpoint.path}"
    if model.startswith("local-dir:"):
        model = f"local-dir:{Path(model.removeprefix('local-dir:')).resolve()}"
    elif model.endswith(".json"):
        model = str(Path(model).resolve())
    return options | ({"model": model} if model else {})


def read_run_record(checkpoint: Path, epoch: int | None) -> RunRecord:
    """Returns what is known of the run that wrote `checkpoint`, logs/NAME/checkpoints/epoch_N.pt."""
    params = checkpoint.parent.parent / "params.txt"
    if checkpoint.parent.name != "checkpoints" or not params.is_file():
        return RunRecord({}, {})
    lines = (line.partition(": ") for line in params.read_text(errors="replace").splitlines())
    options = {name: _value(text) for name, separator, text in lines if separator}
    return RunRecord(options, _measures(checkpoint.with_name("results.jsonl"), epoch))


def training_folder(run: Path, options: dict) -> Path | None:
    """Returns the folder in which a run was trained, to which its relative paths refer; None where nothing tells.

    What `superclip run` has recorded tells, or --logs and --name, which lead from there to the run's own folder.
    """
    try:
        return Path(json.loads((run / "run.json").read_text())["cwd"])
    except (OSError, ValueError, KeyError, TypeError):
        steps = Path(os.path.normpath(os.path.join(str(options.get("logs")), str(options.get("name"))))).parts
    if steps[0] in (os.sep, os.pardir) or run.parts[-len(steps) :] != steps:
        return None
    return Path(*run.parts[: -len(steps)])


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):  # most options are words
        return text


def _measures(results: Path, epoch: int | None) -> dict[str, float]:
    if not results.is_file():
        return {}
    rows = map(_row, results.read_text(errors="replace").splitlines())
    measured = [row for row in rows if row.get("epoch") == epoch]
    return {name: value for row in measured for name, value in row.items() if isinstance(value, float)}


def _row(line: str) -> dict:
    try:
        row = json.loads(line)
    except ValueError:  # empty, or cut by a crash
        return {}
    return row if isinstance(row, dict) else {}


STEP = re.compile(r"Train Epoch: (\d+) \[\s*(\d+)/(\d+) ")


LOSS = re.compile(r"(\w*[Ll]oss): ([\d.e+-]+|nan|-?inf) \(")


SPEED = re.compile(r"([\d.e+-]+)/s, ")


LAST_OF_A_STEP = re.compile(r"\bLoss: \S+ \([^)]*\)\s*$")  # OpenCLIP writes the total last


def read_log(log: Path) -> list[dict]:
    """Returns the points of a run's curve: samples seen in all, samples of an epoch, every loss, samples a second.

    Steps that were trained again, by a run that went on from an earlier checkpoint, count as they were last. A line
    that a crash has cut is left out.
    """
    points = []
    for line in log.read_text(errors="replace").splitlines():
        step = STEP.search(line)
        if not (step and LAST_OF_A_STEP.search(line)):
            continue
        epoch, seen, of_epoch = map(int, step.groups())
        samples = epoch * of_epoch + seen
        while points and points[-1]["samples"] >= samples:
            points.pop()
        speed = SPEED.search(line)
        losses = {name.lower(): float(value) for name, value in LOSS.findall(line)}
        points.append({
            "samples": samples, **losses, "epoch_samples": of_epoch,
            "samples_per_second": float(speed[1]) if speed else None,
        })  # fmt: skip
    return points


CHUNK = 1 << 20  # bytes


def checkpoints(folder: Path) -> dict[int, Path]:
    """Returns the checkpoints in a run's folder `checkpoints`, epoch: file or sharded folder, oldest first."""
    names = ((re.fullmatch(r"epoch_(\d+)(\.pt)?", path.name), path) for path in folder.glob("epoch_*"))
    return dict(sorted((int(name[1]), path) for name, path in names if name and (name[2] or is_sharded(path))))


def is_whole(path: Path) -> bool:
    """Returns whether a checkpoint is complete and every byte in it what was written: reads all of it.

    A sharded one has no checksums.
    """
    if is_sharded(path):
        return is_complete(path)
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
    import torch

    from .checkpoint import read_checkpoint

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


def is_complete(path: str | Path) -> bool:
    """Returns whether a checkpoint was written to its end: torch.save's zip archive ends with its list of contents.

    The last file of a sharded one is the record of its epoch.
    """
    try:
        with zipfile.ZipFile(Path(path) / RECORD_BESIDE if is_sharded(Path(path)) else path):
            return True
    except Exception:  # zipfile has many for what is not one
        return False
