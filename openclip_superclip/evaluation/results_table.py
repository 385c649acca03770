"""The table of results: a row a measure, a column a model, under the paper's names where it has one."""

import statistics

from ..table import markdown_table
from .datasets import SUITES

IMAGE_RETRIEVAL, TEXT_RETRIEVAL = "image_retrieval_recall", "text_retrieval_recall"
MEASURES = {
    "zeroshot_classification": ("acc1", "mean_average_precision"),
    "zeroshot_retrieval": tuple(f"{side}@{k}" for k in (1, 5) for side in (IMAGE_RETRIEVAL, TEXT_RETRIEVAL)),
    "linear_probe": ("lp_acc1",),
}
PAPER_NAMES = {"imagenet1k": "IN-1k", "imagenetv2": "IN-v2", "mscoco_captions": "COCO", "flickr30k": "Flickr"}
THE_38 = [*SUITES["zeroshot"][1], *SUITES["retrieval"][1]]


def table(records: list[dict]) -> str:
    """Returns the table in Markdown, in percent; a measure that a model lacks is a dash."""
    models = list(dict.fromkeys(record["model"] for record in records))
    cells = {
        (_label(record, measure), record["model"]): 100 * record["metrics"][measure]
        for record in sorted(records, key=_place)
        for measure in MEASURES[record["task"]]
        if record["metrics"].get(measure) is not None
    }
    shared = [name for name in THE_38 if all(_score(records, model, name) is not None for model in models)]
    if len(shared) > 1:
        label = "average of 38" if len(shared) == len(THE_38) else f"average of {len(shared)} of the 38"
        for model in models:
            cells[label, model] = 100 * statistics.mean(_score(records, model, name) for name in shared)
    labels = dict.fromkeys(label for label, _ in cells)
    rows = [[label, *(_cell(cells.get((label, model))) for model in models)] for label in labels]
    return markdown_table(["%", *models], rows)


def _label(record: dict, measure: str) -> str:
    name = PAPER_NAMES.get(record["dataset"], record["dataset"])
    side, _, k = measure.partition("@")
    if side in (IMAGE_RETRIEVAL, TEXT_RETRIEVAL):
        return f"{'img' if side == IMAGE_RETRIEVAL else 'txt'}→ret {name} R@{k}"
    if record["task"] == "linear_probe":
        return f"linear probe {name}"
    return f"{name} mAP" if measure == "mean_average_precision" else name


def _place(record: dict) -> tuple:
    """Tells where a record's rows stand: by task, in the order of the suites' lists, then by name."""
    name = record["dataset"]
    return (
        list(MEASURES).index(record["task"]),
        THE_38.index(name) if name in THE_38 else len(THE_38),
        name,
    )


def _score(records: list[dict], model: str, name: str) -> float | None:
    """Returns what a data set adds to the average: accuracy, mean average precision, or the mean of both R@1."""
    for record in records:
        if (record["model"], record["dataset"]) == (model, name) and record["task"] != "linear_probe":
            metrics = record["metrics"]
            if record["task"] == "zeroshot_retrieval":
                return (metrics[f"{IMAGE_RETRIEVAL}@1"] + metrics[f"{TEXT_RETRIEVAL}@1"]) / 2
            return metrics.get("acc1", metrics.get("mean_average_precision"))
    return None


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
