"""The table of results: a row a measure, a column a model, under the paper's names where it has one."""

import hashlib
import json
import re
import statistics
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple

from ..files import write_json
from ..pages import markdown_table
from .outcomes import Estimate, Outcome, difference, estimate, mcnemar, mean_of, read_outcomes
from .suites import RETRIEVAL, SUITES, THE_38, averaged
from .tasks import SHOTS

NOT_IN_CLIP_BENCHMARK = ("WinoGAViL", "iWildCam", "Camelyon17", "FMoW", "Dollar Street", "GeoDE")  # of DataComp's


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


IMAGE_RETRIEVAL, TEXT_RETRIEVAL = "image_retrieval_recall", "text_retrieval_recall"
MEASURES = {
    "zeroshot_classification": ("acc1", "mean_average_precision"),
    "zeroshot_retrieval": tuple(f"{side}@{k}" for k in (1, 5) for side in (IMAGE_RETRIEVAL, TEXT_RETRIEVAL)),
    "linear_probe": ("lp_acc1",),
    "few_shot": tuple(f"fewshot_acc1@{shots}" for shots in SHOTS),
    "knn": ("knn_acc1",),
    "image_caption_selection": ("text_acc", "image_acc", "acc"),
    "segmentation": ("miou",),
    "depth": ("rmse",),
}


NAMES = {  # of measures, where a row needs more than the data set's
    "mean_average_precision": "{} mAP", "lp_acc1": "linear probe {}", "knn_acc1": "k-NN {}",
    "miou": "mIoU {}", "rmse": "RMSE {}, cm",
    "text_acc": "{} text", "image_acc": "{} image", "acc": "{} group",
    **{f"fewshot_acc1@{shots}": f"{shots} a class {{}}" for shots in SHOTS},
}  # fmt: skip


PAPER_NAMES = {"imagenet1k": "IN-1k", "imagenetv2": "IN-v2", "mscoco_captions": "COCO", "flickr30k": "Flickr"}
MOST_COLUMNS = 5
ORDER = [*THE_38, *RETRIEVAL, *SUITES["compositional"][1]]


class Part(NamedTuple):
    """What a data set adds to a score of a model: the mean of the measures, and what became of every test sample."""

    record: dict
    measures: list[str]

    @property
    def value(self) -> float:
        return statistics.mean(self.record["metrics"][name] for name in self.measures)

    def outcomes(self) -> list[Outcome]:
        """Returns those of the measures, fewer where they were not kept."""
        kept = read_outcomes(outcomes_file(Path(self.record.get("file", ""))))
        return [kept[name] for name in self.measures if name in kept]


Score = list[Part]  # one part, or an average's many


class Percent(NamedTuple):
    """A score in percent, with its 95 % interval where what became of every test sample was kept."""

    value: float
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        return f"{self.value:.1f}" + (" [{:.1f}, {:.1f}]".format(*self.interval) if self.interval else "")


def scores_with_intervals(models: list[list[dict]]) -> dict[str, list[Percent | None]]:
    """Returns what the table shows: each model's score by the row's label."""
    return {label: [_percent(score) if score else None for score in scores] for label, scores in _rows(models).items()}


def table(models: list[list[dict]]) -> str:
    """Returns the table in Markdown, in percent, with 95 % intervals; a measure that a model lacks is a dash.

    Args:
        models: the results of each, one at least.
    """
    shown = scores_with_intervals(models)
    return _markdown("%", _names(models), {label: [str(score or "–") for score in row] for label, row in shown.items()})


def differences(models: list[list[dict]]) -> str:
    """Returns a table in Markdown of what each model is ahead of the first, in points, with the paired 95 % interval.

    Accuracies have the p-value of McNemar's test as well. "" where there is nothing to compare.

    Args:
        models: as for `table`.
    """
    rows = {
        label: [_ahead(first, other) for other in others] for label, (first, *others) in _rows(models).items() if others
    }
    rows = {label: cells for label, cells in rows.items() if set(cells) != {"–"}}
    first, *others = _names(models)
    return _markdown("points", [f"{other} − {first}" for other in others], rows) if rows else ""


def _markdown(unit: str, names: list[str], rows: dict[str, list[str]]) -> str:
    """Returns a table with a column a model, or where that would be too wide a row a model."""
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
    """Returns the measures of a result that the table shows, with the labels of their rows."""
    return {
        measure: _label(record, measure)
        for measure in MEASURES.get(record["task"], ())
        if record["metrics"].get(measure) is not None
    }


def _value(score: Score) -> float:
    return 100 * statistics.mean(part.value for part in score)


def _percent(score: Score) -> Percent:
    parts = []
    for part in score:
        outcomes = part.outcomes()
        if len(outcomes) != len(part.measures):
            return Percent(_value(score), None)
        parts.append(mean_of([estimate(one, part.record["dataset"]) for one in outcomes], dependent=True))
    found = mean_of(parts)
    return Percent(100 * found.value, (100 * found.low, 100 * found.high))


def _ahead(first: Score | None, other: Score | None) -> str:
    found = _difference(first, other) if first and other else None
    if found is None:
        return "–"
    text = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * number for number in found))
    of_one = len(first) == 1 and len(first[0].measures) == 1
    p_value = mcnemar(first[0].outcomes()[0], other[0].outcomes()[0]) if of_one else None
    if p_value is None:
        return text
    return f"{text}, p {'< 0.001' if p_value < 0.001 else f'= {p_value:.3f}'}"


def _difference(first: Score, other: Score) -> Estimate | None:
    """Returns the paired difference; None if the outcomes of the samples were not kept, or the samples differ."""
    parts = []
    for one, two in zip(first, other, strict=True):
        pairs = list(zip(one.outcomes(), two.outcomes(), strict=False))
        alike = one.record.get("data_files") == two.record.get("data_files")
        alike = alike and all(len(a.scored) == len(b.scored) for a, b in pairs)
        if not alike or len(pairs) != len(one.measures):
            return None
        name = one.record["dataset"]
        parts.append(mean_of([difference(a, b, name) for a, b in pairs], dependent=True))
    return mean_of(parts)


def _names(models: list[list[dict]]) -> list[str]:
    """Returns the columns' heads: a model's name or, where another has the same, what the user gave, else its place."""
    firsts = [records[0] for records in models]

    def name(model: dict) -> str:
        keys = ("model", "checkpoint")
        unique = (model[key] for key in keys if [first[key] for first in firsts].count(model[key]) == 1)
        return next(unique, model["source"])

    return [name(model) for model in firsts]


def _label(record: dict, measure: str) -> str:
    name = PAPER_NAMES.get(record["dataset"], record["dataset"])
    side, _, k = measure.partition("@")
    if side in (IMAGE_RETRIEVAL, TEXT_RETRIEVAL):
        return f"{'img' if side == IMAGE_RETRIEVAL else 'txt'}→ret {name} R@{k}"
    tuned = " (tower tuned)" if record.get("settings", {}).get("finetune") else ""
    return NAMES.get(measure, "{}").format(name) + tuned


def _place(record: dict) -> tuple:
    """Tells where a record's rows stand: by task, in the order of the suites' lists, then by name."""
    name, tasks = record["dataset"], list(MEASURES)
    return (
        tasks.index(record["task"]) if record["task"] in tasks else len(tasks),
        ORDER.index(name) if name in ORDER else len(ORDER),
        name,
    )
