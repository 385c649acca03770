"""The results: one JSON file per model, data set and task, read instead of computed again where nothing has changed."""

import hashlib
import json
import re
from itertools import groupby
from pathlib import Path

from ..atomic_files import write_json

PACKAGES = (
    "openclip-superclip", "open_clip_torch", "clip-benchmark", "torch", "torchvision", "webdataset", "scikit-learn",
    "numpy", "pillow", "transformers",
)  # fmt: skip
OF_FEATURES = tuple(name for name in PACKAGES if name not in ("clip-benchmark", "scikit-learn"))
MUST_AGREE = ("model", "source", "dataset", "task", "weights", "tokenizer", "data_files", "settings", "versions")


def record_file(folder: Path, model: str, dataset: str, task: str, source: str) -> Path:
    """Returns where a result is.

    `source` tells models of one name apart. The name ends in a digest of it all, as words lose what no file can have.
    """
    words = (re.sub(r"[^\w.+-]+", "-", word).strip("-") for word in (model, dataset, task))
    digest = hashlib.sha256(json.dumps([model, dataset, task, source]).encode()).hexdigest()[:8]
    return folder / f"{'.'.join(words)}.{digest}.json"


def outcomes_file(file: Path) -> Path:
    """Returns where what became of every test sample is, beside a result."""
    return file.with_suffix(".outcomes.npz")


def neighbours_file(outcomes: Path) -> Path:
    """Returns where the maps of the patches' neighbours are, beside the outcomes."""
    return outcomes.with_name(outcomes.name.replace(".outcomes.", ".neighbours."))


def read_record(file: Path, expected: dict) -> dict | None:
    """Returns a result that is there and agrees in all that it depends on, with its file, else None."""
    record = _read(file) or {}
    return record | {"file": str(file)} if all(record.get(key) == expected[key] for key in MUST_AGREE) else None


def write_record(file: Path, record: dict) -> None:
    """Writes a result whole."""
    write_json(file, record, allow_nan=False)


def read_records(folder: Path) -> list[list[dict]]:
    """Returns all results in a folder, by model; JSON files of another kind may lie beside them."""

    def model(record: dict) -> tuple[str, str]:
        return record["model"], record["source"]

    records = ((_read(file) or {}) | {"file": str(file)} for file in sorted(folder.glob("*.json")))
    results = [record for record in records if record.keys() >= {"metrics", *MUST_AGREE}]
    return [list(group) for _, group in groupby(sorted(results, key=model), key=model)]


def _read(file: Path) -> dict | None:
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
