"""Result files, and their table: a row per measure and a column per model, with the paper's
names."""

import hashlib
import json
import re
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from ...files import read_json
from ...rendering import markdown_table
from .intervals import Outcome, difference, estimate, mean_of, read_outcomes
from .suites import RETRIEVAL, THE_38, averaged

PACKAGES = (
    "openclip-superclip",
    "open_clip_torch",
    "clip-benchmark",
    "torch",
    "torchvision",
    "webdataset",
    "scikit-learn",
    "numpy",
    "pillow",
    "transformers",
)
MUST_AGREE = ("model", "source", "dataset", "task", "weights", "data_files", "settings", "versions")


def record_file(folder: Path, model: str, dataset: str, task: str, source: str) -> Path:
    """Returns the file of a result; its digest distinguishes models of the same name by their
    `source`."""
    digest = hashlib.sha256(json.dumps([model, dataset, task, source]).encode()).hexdigest()[:8]
    words = (re.sub(r"[^\w.+-]+", "-", word).strip("-") for word in (model, dataset, task))
    return folder / f"{'.'.join([*words, digest])}.json"


def read_record(file: Path, expected: dict) -> dict | None:
    """Returns an existing result, with its file, if its inputs are unchanged and its outcomes
    are there, else None."""
    record = read_json(file, default={}) | {"file": str(file)}
    if any(record.get(key) != expected[key] for key in MUST_AGREE):
        return None
    return (
        record
        if _shown(record).keys() <= read_outcomes(file.with_suffix(".outcomes.npz")).keys()
        else None
    )


IMAGE_RETRIEVAL, TEXT_RETRIEVAL = "image_retrieval_recall", "text_retrieval_recall"
MEASURES = {  # that the table shows, by task
    "zeroshot_classification": ("acc1", "mean_average_precision"),
    "zeroshot_retrieval": tuple(
        f"{side}@{k}" for k in (1, 5) for side in (IMAGE_RETRIEVAL, TEXT_RETRIEVAL)
    ),
    "linear_probe": ("lp_acc1",),
    "segmentation": ("miou",),
    "depth": ("rmse",),
}
LABELS = {  # of rows; acc1's is the data set's name
    **{f"{IMAGE_RETRIEVAL}@{k}": f"img→ret {{}} R@{k}" for k in (1, 5)},
    **{f"{TEXT_RETRIEVAL}@{k}": f"txt→ret {{}} R@{k}" for k in (1, 5)},
    "mean_average_precision": "{} mAP",
    "lp_acc1": "linear probe {}",
    "miou": "mIoU {}",
    "rmse": "RMSE {}, cm",
}
PAPER_NAMES = {
    "imagenet1k": "IN-1k",
    "imagenetv2": "IN-v2",
    "mscoco_captions": "COCO",
    "flickr30k": "Flickr",
}
MOST_COLUMNS = 5
ORDER = [*THE_38, *RETRIEVAL]


class Part(NamedTuple):
    """A data set's contribution to a model's score: a measure of a result."""

    record: dict
    measure: str

    def outcome(self) -> Outcome:
        """Returns the stored outcome of the measure."""
        return read_outcomes(Path(self.record["file"]).with_suffix(".outcomes.npz"))[self.measure]


Score = list[Part]  # one part, or all parts of an average


def table(models: list[list[dict]]) -> str:
    """Returns the table of each model's results in Markdown, in percent, with 95 % intervals; a
    dash if missing."""
    rows = {
        label: [_percent(score) if score else "–" for score in scores]
        for label, scores in _rows(models).items()
    }
    return _markdown("%", _names(models), rows)


def differences(models: list[list[dict]]) -> str:
    """Returns a table in Markdown of the paired differences to the first model, in points; "" if
    there are none."""
    rows = {
        label: [_ahead(first, other) for other in others]
        for label, (first, *others) in _rows(models).items()
    }
    rows = {label: cells for label, cells in rows.items() if set(cells) - {"–"}}
    first, *others = _names(models)
    return _markdown("points", [f"{other} − {first}" for other in others], rows) if rows else ""


def _markdown(unit: str, names: list[str], rows: dict[str, list[str]]) -> str:
    """Returns a table with a column per model, or a row per model if that would be too wide."""
    if len(names) <= MOST_COLUMNS:
        return markdown_table([unit, *names], [[label, *cells] for label, cells in rows.items()])
    columns = zip(*rows.values(), strict=True)
    return markdown_table(
        [unit, *rows], [[name, *cells] for name, cells in zip(names, columns, strict=True)]
    )


def _rows(models: list[list[dict]]) -> dict[str, list[Score | None]]:
    """Returns the score of every model by the row's label, the averages last."""
    columns = [
        {
            label: [Part(record, measure)]
            for record in records
            for measure, label in _shown(record).items()
        }
        for records in models
    ]

    def place(record: dict) -> tuple:  # by task, in the order of the suites' lists, then by name
        name = record["dataset"]
        return (
            [*MEASURES].index(record["task"]),
            ORDER.index(name) if name in ORDER else len(ORDER),
            name,
        )

    labels = dict.fromkeys(
        label for record in sorted(chain(*models), key=place) for label in _shown(record).values()
    )
    rows = {label: [column.get(label) for column in columns] for label in labels}
    return rows | {
        name: [[Part(*one) for one in parts] for parts in found]
        for name, found in averaged(models).items()
    }


def _shown(record: dict) -> dict[str, str]:
    """Returns the measures of a result in the table, with their row labels."""
    name = PAPER_NAMES.get(record["dataset"], record["dataset"])
    return {
        measure: LABELS.get(measure, "{}").format(name)
        for measure in MEASURES.get(record["task"], ())
        if record["metrics"].get(measure) is not None
    }


def _percent(score: Score) -> str:
    return mean_of([estimate(part.outcome()) for part in score]).text(".1f", 100)


def _ahead(first: Score | None, other: Score | None) -> str:
    """Returns the paired difference; a dash if a score is missing or is of different samples."""
    found = []
    for one, two in zip(first or [], other or [], strict=False):
        before, after = one.outcome(), two.outcome()
        if (
            len(before.scored) != len(after.scored)
            or one.record["data_files"] != two.record["data_files"]
        ):
            return "–"
        found.append(difference(before, after))
    return mean_of(found).text("+.1f", 100) if found else "–"


def _names(models: list[list[dict]]) -> list[str]:
    """Returns each model's name or, if it is not unique, the user's argument, else its source."""
    firsts, names = [records[0] for records in models], []
    for model in firsts:
        unique = (
            key
            for key in ("model", "checkpoint")
            if [first[key] for first in firsts].count(model[key]) == 1
        )
        names.append(model[next(unique, "source")])
    return names
