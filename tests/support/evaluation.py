"""`superclip evaluate` in this process, and the results that it writes."""

import json
import re

from .training_runs import call


def evaluate(command, *more):
    return call(f"evaluate {command}", *more, "--device", "cpu", "--workers", 0)


def records(folder):
    """The results in a folder by model, data set and task."""
    files = [file for file in sorted(folder.glob("*.json")) if file.name != "scores.json"]
    found = [json.loads(file.read_text()) for file in files]
    return {(record["model"], record["dataset"], record["task"]): record for record in found}


def num_reused(capsys):
    """The number of results that the last call has reused."""
    return sum(map(int, re.findall(r"^reused results: (\d)$", capsys.readouterr().err, re.M)))


def errors(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
