"""The files of results: one per model, data set and task, reused while its inputs are unchanged."""

import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Callable
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


def run_of(path: Path) -> Path | None:
    """Returns the folder of a run if the path is one, or a checkpoint in it."""
    if any((path / name).exists() for name in ("checkpoints", "params.txt", "run.json")):
        return path
    folder = path.absolute().parent
    return folder.parent if folder.name == "checkpoints" else None


def source_of(argument: str, folder: Path) -> str:
    """Returns what the results in a folder call a model: the path of its file, which may be a link,
    or the name of a released model.

    The path is relative to the results, so that both can be moved together.
    """
    path = Path(argument.removeprefix("local-dir:"))
    if not path.exists():
        return argument
    return os.path.relpath(path.absolute().parent.resolve() / path.name, folder.resolve())


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


def read_results(folder: Path, is_wanted: Callable[[str], bool]) -> list[dict]:
    """Returns the results in a folder of the sources that are wanted, except for damaged files and
    results of weights that were replaced since."""
    identity = functools.cache(lambda source: file_identity(folder / source))
    records = []
    for file in sorted(folder.glob("*.json")):
        record = json_or_empty(file)
        source = record.get("source")
        is_result = isinstance(record.get("metrics"), dict) and isinstance(source, str)
        if is_result and is_wanted(source):
            evaluated = record.get("source_id")
            if evaluated is None or identity(source) in (None, evaluated):
                records.append(record)
    return records
