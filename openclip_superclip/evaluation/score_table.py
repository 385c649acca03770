"""The tables of results: a row per measure and a column per model, with the paper's names."""

from ..rendering import markdown_table
from .intervals import NO_INTERVAL, Estimate, Outcome, difference, estimate, mean_of
from .suites import RETRIEVAL, THE_38, averaged

LABELS = {  # of rows, by task and measure; {} is the data set
    "zeroshot_classification": {"acc1": "{}", "mean_average_precision": "{} mAP"},
    "zeroshot_retrieval": {
        "image_retrieval_recall@1": "img→ret {} R@1",
        "text_retrieval_recall@1": "txt→ret {} R@1",
        "image_retrieval_recall@5": "img→ret {} R@5",
        "text_retrieval_recall@5": "txt→ret {} R@5",
    },
    "linear_probe": {"lp_acc1": "linear probe {}"},
    "segmentation": {"miou": "mIoU {}"},
    "depth": {"rmse": "RMSE {}, cm"},
}
PAPER_NAMES = {
    "imagenet1k": "IN-1k",
    "imagenetv2": "IN-v2",
    "mscoco_captions": "COCO",
    "flickr30k": "Flickr",
}
MOST_COLUMNS = 5
ORDER = [*THE_38, *RETRIEVAL]


# outcomes of a model: one, or those of an average; none if they are missing
Score = list[Outcome]


def tables(models: list[list[dict]]) -> str:
    """Returns tables in Markdown: each model's results in percent and, if there are any, the paired
    differences to the first model in points, with 95 % intervals; a dash if missing."""
    names = _names(models)
    results = {}
    changes = {}
    for label, scores in _rows(models).items():
        results[label] = [_cell(list(map(estimate, score)), ".1f") for score in scores]
        first, *others = scores
        paired = [list(map(difference, first, other)) for other in others]
        if any(paired):
            changes[label] = [_cell(parts, "+.1f") for parts in paired]
    text = _markdown("%", names, results)
    if changes:
        columns = [f"{name} − {names[0]}" for name in names[1:]]
        text += "\n\n" + _markdown("points", columns, changes)
    return f"{text}\n\n{NO_INTERVAL}" if "[–]" in text else text


def _cell(parts: list[Estimate], format: str) -> str:
    """Returns the mean of estimates as text; a dash if there are none."""
    return mean_of(parts).text(format) if parts else "–"


def _markdown(unit: str, names: list[str], rows: dict[str, list[str]]) -> str:
    """Returns a table with a column per model, or a row per model if that would be too wide."""
    table = [[unit, *names]] + [[label, *cells] for label, cells in rows.items()]
    if len(names) > MOST_COLUMNS:
        table = list(zip(*table, strict=True))
    return markdown_table(table[0], table[1:])


def _rows(models: list[list[dict]]) -> dict[str, list[Score]]:
    """Returns the score of every model by the row's label, the averages last."""
    rows = {}
    results = [(record, number) for number, records in enumerate(models) for record in records]
    for record, number in sorted(results, key=_table_order):
        name = PAPER_NAMES.get(record["dataset"], record["dataset"])
        for measure, label in LABELS[record["task"]].items():
            if measure in record["outcomes"]:
                scores = rows.setdefault(label.format(name), [[] for _ in models])
                scores[number] = [record["outcomes"][measure]]
    for label, of_models in averaged(models).items():
        rows[label] = [
            [record["outcomes"][measure] for record, measure in parts] for parts in of_models
        ]
    return rows


def _table_order(result: tuple[dict, int]) -> tuple[int, int, str]:
    """Returns what sorts results by task, in the order of the suites' lists, then by name."""
    record, _ = result
    name = record["dataset"]
    in_suite = ORDER.index(name) if name in ORDER else len(ORDER)
    return list(LABELS).index(record["task"]), in_suite, name


def _names(models: list[list[dict]]) -> list[str]:
    """Returns each model's name or, if it is not unique, the user's argument."""
    firsts = [records[0] for records in models]
    names = [first["model"] for first in firsts]
    return [
        name if names.count(name) == 1 else first["checkpoint"]
        for name, first in zip(names, firsts, strict=True)
    ]
