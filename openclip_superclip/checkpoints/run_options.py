"""What OpenCLIP's trainer wrote beside a checkpoint: the options of the run and its measures."""

import ast
import json
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
