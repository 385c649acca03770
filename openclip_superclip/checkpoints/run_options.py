"""What is known of the run behind a checkpoint: its options and its measures."""

import ast
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # who reads a run's options alone needs no torch
    from .checkpoint import Checkpoint

# What a mean of checkpoints and an export's head keep of the options: what tells the model, and how it was trained.
KEPT = (
    "model", "pretrained", "force_quick_gelu", "force_image_size", "force_context_length",
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
