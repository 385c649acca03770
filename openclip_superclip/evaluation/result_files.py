"""The files of results: one per model, data set and task, reused while its inputs are unchanged."""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from ..files import json_or_empty, write_json
from .intervals import Outcome, estimate, read_outcomes, write_outcomes

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

    @property
    def outcomes_file(self) -> Path:
        """The file of the outcomes that belong to the result."""
        return self.path.with_suffix(".outcomes.npz")

    def read(self) -> dict | None:
        """Returns the existing result with its outcomes, if its inputs are unchanged and its
        outcomes are there, else None."""
        record = json_or_empty(self.path)
        if any(record.get(name) != fact for name, fact in self.facts.items()):
            return None
        outcomes = read_outcomes(self.outcomes_file)
        if not record["intervals"].keys() <= outcomes.keys():
            return None
        return record | self.about | {"outcomes": outcomes}

    def write(self, metrics: dict[str, float], outcomes: dict[str, Outcome]) -> dict:
        """Writes a result and its outcomes; returns both. Its metrics are the given ones, with
        CLIP_benchmark's rounding, and the scores of the other outcomes; undefined ones are None."""
        self.path.unlink(missing_ok=True)  # so that a stop between the two files leaves no result
        write_outcomes(self.outcomes_file, outcomes)
        estimates = {name: estimate(outcome) for name, outcome in outcomes.items()}
        metrics = {name: score.value for name, score in estimates.items()} | metrics
        defined = {name: None if math.isnan(value) else value for name, value in metrics.items()}
        record = {
            **self.facts,
            "metrics": defined,
            "intervals": {name: score.limits() for name, score in estimates.items()},
            **self.about,
        }
        write_json(self.path, record)
        return record | {"outcomes": outcomes}
