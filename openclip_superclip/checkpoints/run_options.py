"""What OpenCLIP's trainer wrote beside a checkpoint: the options of the run and its measures."""

import ast
import json
import os
from pathlib import Path
from typing import NamedTuple


class RunRecord(NamedTuple):
    """Both empty where a checkpoint stands alone."""

    options: dict  # of params.txt, under the names of the parsed command line
    measures: dict[str, float]  # of results.jsonl, of the checkpoint's epoch


def read_run_record(checkpoint: Path, epoch: int | None) -> RunRecord:
    """Returns what is known of the run that wrote `checkpoint`, logs/NAME/checkpoints/epoch_N.pt."""
    params = checkpoint.parent.parent / "params.txt"
    if checkpoint.parent.name != "checkpoints" or not params.is_file():
        return RunRecord({}, {})
    lines = (line.partition(": ") for line in params.read_text().splitlines())
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
    rows = map(json.loads, filter(str.strip, results.read_text().splitlines()))
    measured = [row for row in rows if row.get("epoch") == epoch]
    return {name: value for row in measured for name, value in row.items() if isinstance(value, float)}
