"""Result files, and their table: a row per measure and a column per model, with the paper's names."""

import hashlib
import json
import re
import statistics
from collections.abc import Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple

from ..pages import markdown_table
from .outcomes import Estimate, Outcome, difference, estimate, mcnemar, mean_of, read_outcomes
from .suites import RETRIEVAL, SUITES, THE_38, averaged
from .tasks import SHOTS

PACKAGES = (
    "openclip-superclip", "open_clip_torch", "clip-benchmark", "torch", "torchvision", "webdataset", "scikit-learn",
    "numpy", "pillow", "transformers",
)  # fmt: skip
OF_FEATURES = tuple(name for name in PACKAGES if name not in ("clip-benchmark", "scikit-learn"))
MUST_AGREE = ("model", "source", "dataset", "task", "weights", "tokenizer", "data_files", "settings", "versions")


def file_name(words: Sequence[str], identity: Sequence | dict) -> str:
    """Returns a file name from words and a digest of `identity`, as special characters are removed from the words."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    return ".".join([*(re.sub(r"[^\w.+-]+", "-", word).strip("-") for word in words), digest])


def record_file(folder: Path, model: str, dataset: str, task: str, source: str) -> Path:
    """Returns the file of a result; `source` distinguishes models of the same name."""
    return folder / f"{file_name((model, dataset, task), [model, dataset, task, source])}.json"


def read_record(file: Path, expected: dict) -> dict | None:
    """Returns an existing result, with its file, if all of its inputs are unchanged, else None."""
    record = _read(file)
    return record | {"file": str(file)} if all(record.get(key) == expected[key] for key in MUST_AGREE) else None


def read_records(folder: Path) -> list[list[dict]]:
    """Returns all results in a folder, by model; other JSON files are skipped."""

    def model(record: dict) -> tuple[str, str]:
        return record["model"], record["source"]

    records = (_read(file) | {"file": str(file)} for file in sorted(folder.glob("*.json")))
    results = [record for record in records if record.keys() >= {"metrics", *MUST_AGREE}]
    return [list(group) for _, group in groupby(sorted(results, key=model), key=model)]


def _read(file: Path) -> dict:
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


IMAGE_RETRIEVAL, TEXT_RETRIEVAL = "image_retrieval_recall", "text_retrieval_recall"
MEASURES = {  # that the table shows, by task
    "zeroshot_classification": ("acc1", "mean_average_precision"),
    "zeroshot_retrieval": tuple(f"{side}@{k}" for k in (1, 5) for side in (IMAGE_RETRIEVAL, TEXT_RETRIEVAL)),
    "linear_probe": ("lp_acc1",),
    "few_shot": tuple(f"fewshot_acc1@{shots}" for shots in SHOTS),
    "knn": ("knn_acc1",),
    "image_caption_selection": ("text_acc", "image_acc", "acc"),
    "segmentation": ("miou",),
    "depth": ("rmse",),
}
LABELS = {  # of rows; acc1's is the data set's name
    **{f"{IMAGE_RETRIEVAL}@{k}": f"img→ret {{}} R@{k}" for k in (1, 5)},
    **{f"{TEXT_RETRIEVAL}@{k}": f"txt→ret {{}} R@{k}" for k in (1, 5)},
    **{f"fewshot_acc1@{shots}": f"{shots} a class {{}}" for shots in SHOTS},
    "mean_average_precision": "{} mAP", "lp_acc1": "linear probe {}", "knn_acc1": "k-NN {}",
    "miou": "mIoU {}", "rmse": "RMSE {}, cm",
    "text_acc": "{} text", "image_acc": "{} image", "acc": "{} group",
}  # fmt: skip
PAPER_NAMES = {"imagenet1k": "IN-1k", "imagenetv2": "IN-v2", "mscoco_captions": "COCO", "flickr30k": "Flickr"}
MOST_COLUMNS = 5
ORDER = [*THE_38, *RETRIEVAL, *SUITES["compositional"][1]]


class Part(NamedTuple):
    """A data set's contribution to a model's score: the mean of these measures of a result."""

    record: dict
    measures: list[str]

    def outcomes(self) -> list[Outcome]:
        """Returns the stored outcomes of the measures."""
        kept = read_outcomes(Path(self.record["file"]).with_suffix(".outcomes.npz"))
        return [kept[name] for name in self.measures if name in kept]


Score = list[Part]  # one part, or all parts of an average


def table(models: list[list[dict]]) -> str:
    """Returns the table in Markdown, in percent, with 95 % intervals; a measure that a model lacks is a dash.

    Args:
        models: the results of each model, at least one.
    """
    rows = {label: [_percent(score) if score else "–" for score in scores] for label, scores in _rows(models).items()}
    return _markdown("%", _names(models), rows)


def differences(models: list[list[dict]]) -> str:
    """Returns a table in Markdown of each model's difference to the first one, in points, with the paired interval.

    Accuracies have the p-value of McNemar's test as well. "" if there is nothing to compare.

    Args:
        models: as in `table`.
    """
    rows = {label: [_ahead(first, other) for other in others] for label, (first, *others) in _rows(models).items()}
    rows = {label: cells for label, cells in rows.items() if set(cells) - {"–"}}
    first, *others = _names(models)
    return _markdown("points", [f"{other} − {first}" for other in others], rows) if rows else ""


def _markdown(unit: str, names: list[str], rows: dict[str, list[str]]) -> str:
    """Returns a table with a column per model, or a row per model if that would be too wide."""
    if len(names) <= MOST_COLUMNS:
        return markdown_table([unit, *names], [[label, *cells] for label, cells in rows.items()])
    columns = zip(*rows.values(), strict=True)
    return markdown_table([unit, *rows], [[name, *cells] for name, cells in zip(names, columns, strict=True)])


def _rows(models: list[list[dict]]) -> dict[str, list[Score | None]]:
    """Returns the score of every model by the row's label, the averages last."""
    columns = [
        {label: [Part(record, [measure])] for record in records for measure, label in _shown(record).items()}
        for records in models
    ]
    labels = dict.fromkeys(label for record in sorted(chain(*models), key=_place) for label in _shown(record).values())
    rows = {label: [column.get(label) for column in columns] for label in labels}
    for label, found in averaged(models).items():
        rows[label] = [[Part(*part) for part in parts] for parts in found]
    return rows


def _shown(record: dict) -> dict[str, str]:
    """Returns the measures of a result in the table, with their row labels."""
    name = PAPER_NAMES.get(record["dataset"], record["dataset"])
    tuned = " (tower tuned)" if record.get("settings", {}).get("finetune") else ""
    return {
        measure: LABELS.get(measure, "{}").format(name) + tuned
        for measure in MEASURES.get(record["task"], ())
        if record["metrics"].get(measure) is not None
    }


def _percent(score: Score) -> str:
    parts = []
    for part in score:
        outcomes = part.outcomes()
        if len(outcomes) != len(part.measures):
            values = [statistics.mean(one.record["metrics"][name] for name in one.measures) for one in score]
            return f"{100 * statistics.mean(values):.1f}"
        parts.append(mean_of([estimate(one, part.record["dataset"]) for one in outcomes], dependent=True))
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * number for number in mean_of(parts)))


def _ahead(first: Score | None, other: Score | None) -> str:
    found = _difference(first, other) if first and other else None
    if found is None:
        return "–"
    text = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * number for number in found))
    is_one_measure = len(first) == 1 and len(first[0].measures) == 1
    p_value = mcnemar(first[0].outcomes()[0], other[0].outcomes()[0]) if is_one_measure else None
    if p_value is None:
        return text
    return f"{text}, p {'< 0.001' if p_value < 0.001 else f'= {p_value:.3f}'}"


def _difference(first: Score, other: Score) -> Estimate | None:
    """Returns the paired difference; None if outcomes are missing or are of different samples."""
    parts = []
    for one, two in zip(first, other, strict=True):
        pairs = list(zip(one.outcomes(), two.outcomes(), strict=False))
        is_same_data = one.record.get("data_files") == two.record.get("data_files")
        is_same_data = is_same_data and all(len(a.scored) == len(b.scored) for a, b in pairs)
        if not is_same_data or len(pairs) != len(one.measures):
            return None
        name = one.record["dataset"]
        parts.append(mean_of([difference(a, b, name) for a, b in pairs], dependent=True))
    return mean_of(parts)


def _names(models: list[list[dict]]) -> list[str]:
    """Returns each model's name or, if it is not unique, the user's argument, else its source."""
    firsts = [records[0] for records in models]

    def name(model: dict) -> str:
        unique = (key for key in ("model", "checkpoint") if [first[key] for first in firsts].count(model[key]) == 1)
        return model[next(unique, "source")]

    return [name(model) for model in firsts]


def _place(record: dict) -> tuple:
    """Returns the order of a record's rows: by task, in the order of the suites' lists, then by name."""
    name, tasks = record["dataset"], list(MEASURES)
    return (
        tasks.index(record["task"]) if record["task"] in tasks else len(tasks),
        ORDER.index(name) if name in ORDER else len(ORDER),
        name,
    )
