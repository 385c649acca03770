"""The files of results: one per model, data set and task, reused while its inputs are unchanged."""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from ..files import file_identity, json_or_empty, write_json

PACKAGES = (
    "openclip-superclip",
    "open_clip_torch",
    "clip-benchmark",
    "torch",
    "torchvision",
    "timm",
    "webdataset",
    "scikit-learn",
    "numpy",
    "pillow",
    "transformers",
)


def record_file(folder: Path, model: str, dataset: str, task: str, source: str) -> Path:
    """Returns the file of a result; its digest distinguishes models of the same name by their
    `source`."""
    digest = hashlib.sha256(json.dumps([model, dataset, task, source]).encode()).hexdigest()[:8]
    words = (re.sub(r"[^\w.+-]+", "-", word)[-60:].strip("-") for word in (model, dataset, task))
    return folder / f"{'.'.join([*words, digest])}.json"


@dataclass(frozen=True)
class ResultFile:
    """A result's file."""

    path: Path
    facts: dict  # on which the result depends
    about: dict  # other facts

    def is_current(self) -> bool:
        """Returns whether the result exists and its inputs are unchanged."""
        record = json_or_empty(self.path)
        facts_match = all(record.get(name) == fact for name, fact in self.facts.items())
        return facts_match and "num_outcomes" in record

    def write(self, metrics: dict[str, float], num_outcomes: dict[str, int]) -> None:
        """Writes a result; undefined metrics are None."""
        defined = {name: None if math.isnan(value) else value for name, value in metrics.items()}
        measured = {"metrics": defined, "num_outcomes": num_outcomes}
        write_json(self.path, self.facts | measured | self.about)


def read_results(folder: Path) -> list[dict]:
    """Returns the results in a folder, except for damaged files and results of a checkpoint that
    was trained again since; `file` is the path of what was evaluated."""
    records = []
    for file in sorted(folder.glob("*.json")):
        record = json_or_empty(file)
        if not isinstance(record.get("metrics"), dict):
            continue
        evaluated = record.get("source_id")
        weights = folder / str(record.get("source"))
        if evaluated is None or file_identity(weights) in (None, evaluated):
            records.append(record | {"file": weights})
    return records


def is_of(record: dict, argument: str) -> bool:
    """Returns whether a result is of a file, folder or released model."""
    path = Path(argument.removeprefix("local-dir:"))
    if path.exists():
        return _without_link(record["file"]) == _without_link(path)
    return record.get("source") == argument


def is_of_run(record: dict, run: Path) -> bool:
    """Returns whether a result is of a checkpoint in a run's folder, which may be a link."""
    folder = (run / "checkpoints").resolve()
    weights = record["file"]
    return record.get("source") is None or folder in (
        weights.parent.resolve(),
        weights.resolve().parent,
    )


def _without_link(path: Path) -> Path:
    """Returns the absolute path of a file, which may itself be a link."""
    return path.parent.resolve() / path.name
