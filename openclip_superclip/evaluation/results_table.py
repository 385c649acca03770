"""The table of results: a row a measure, a column a model, under the paper's names where it has one."""

from itertools import chain

from ..table import markdown_table
from .averages import RETRIEVAL, THE_38, averages

IMAGE_RETRIEVAL, TEXT_RETRIEVAL = "image_retrieval_recall", "text_retrieval_recall"
MEASURES = {
    "zeroshot_classification": ("acc1", "mean_average_precision"),
    "zeroshot_retrieval": tuple(f"{side}@{k}" for k in (1, 5) for side in (IMAGE_RETRIEVAL, TEXT_RETRIEVAL)),
    "linear_probe": ("lp_acc1",),
}
PAPER_NAMES = {"imagenet1k": "IN-1k", "imagenetv2": "IN-v2", "mscoco_captions": "COCO", "flickr30k": "Flickr"}
ORDER = [*THE_38, *RETRIEVAL]


def table(models: list[list[dict]]) -> str:
    """Returns the table in Markdown, in percent; a measure that a model lacks is a dash.

    Args:
        models: the results of each, one at least.
    """
    columns = [_scores(records) for records in models]
    for label, means in averages(models).items():
        for column, mean in zip(columns, means, strict=True):
            column[label] = 100 * mean
    labels = dict.fromkeys(label for record in sorted(chain(*models), key=_place) for label in _scores([record]))
    labels |= dict.fromkeys(chain(*columns))  # the averages
    rows = [[label, *(_cell(column.get(label)) for column in columns)] for label in labels]
    return markdown_table(["%", *_names(models)], rows)


def _scores(records: list[dict]) -> dict[str, float]:
    """Returns what a model's results show, in percent, by the row's label."""
    return {
        _label(record, measure): 100 * record["metrics"][measure]
        for record in records
        for measure in MEASURES[record["task"]]
        if record["metrics"].get(measure) is not None
    }


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
    if record["task"] == "linear_probe":
        return f"linear probe {name}"
    return f"{name} mAP" if measure == "mean_average_precision" else name


def _place(record: dict) -> tuple:
    """Tells where a record's rows stand: by task, in the order of the suites' lists, then by name."""
    name = record["dataset"]
    return (
        list(MEASURES).index(record["task"]),
        ORDER.index(name) if name in ORDER else len(ORDER),
        name,
    )


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
