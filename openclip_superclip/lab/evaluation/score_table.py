"""The table of results: a row per measure and a column per model, with the paper's names."""

from itertools import chain

from ...rendering import markdown_table
from .intervals import Outcome, difference, estimate, mean_of, read_outcomes
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


# measures of results: one, or those of an average
Score = list[tuple[dict, str]]


def table(models: list[list[dict]]) -> str:
    """Returns the table of each model's results in Markdown, in percent, with 95 % intervals; a
    dash if missing."""
    rows = {}
    for label, scores in _rows(models).items():
        rows[label] = [_percent(score) if score else "–" for score in scores]
    return _markdown("%", _names(models), rows)


def differences(models: list[list[dict]]) -> str:
    """Returns a table in Markdown of the paired differences to the first model, in points; "" if
    there are none."""
    rows = {}
    for label, (first, *others) in _rows(models).items():
        cells = [_ahead(first, other) for other in others]
        if set(cells) - {"–"}:
            rows[label] = cells
    first, *others = _names(models)
    return _markdown("points", [f"{other} − {first}" for other in others], rows) if rows else ""


def _markdown(unit: str, names: list[str], rows: dict[str, list[str]]) -> str:
    """Returns a table with a column per model, or a row per model if that would be too wide."""
    table = [[unit, *names]] + [[label, *cells] for label, cells in rows.items()]
    if len(names) > MOST_COLUMNS:
        table = list(zip(*table, strict=True))
    return markdown_table(table[0], table[1:])


def _rows(models: list[list[dict]]) -> dict[str, list[Score | None]]:
    """Returns the score of every model by the row's label, the averages last."""
    rows = {}
    for record in sorted(chain(*models), key=_table_order):
        for label in _shown(record).values():
            rows[label] = [None] * len(models)
    for number, records in enumerate(models):
        for record in records:
            for measure, label in _shown(record).items():
                rows[label][number] = [(record, measure)]
    return rows | averaged(models)


def _table_order(record: dict) -> tuple[int, int, str]:
    """Returns what sorts results by task, in the order of the suites' lists, then by name."""
    name = record["dataset"]
    in_suite = ORDER.index(name) if name in ORDER else len(ORDER)
    return list(LABELS).index(record["task"]), in_suite, name


def _shown(record: dict) -> dict[str, str]:
    """Returns the measures of a result in the table, with their row labels."""
    name = PAPER_NAMES.get(record["dataset"], record["dataset"])
    return {
        measure: label.format(name)
        for measure, label in LABELS.get(record["task"], {}).items()
        if record["metrics"].get(measure) is not None
    }


def _outcome(record: dict, measure: str) -> Outcome:
    """Returns the stored outcome of a measure."""
    return read_outcomes(record["outcomes_file"])[measure]


def _percent(score: Score) -> str:
    return mean_of([estimate(_outcome(*part)) for part in score]).text(".1f")


def _ahead(first: Score | None, other: Score | None) -> str:
    """Returns the paired difference; a dash if a score is missing or is of different samples."""
    if not first or not other:
        return "–"
    parts = []
    for before, after in zip(first, other, strict=True):
        outcomes = _outcome(*before), _outcome(*after)
        num_samples = {len(outcome.scored) for outcome in outcomes}
        if len(num_samples) > 1 or before[0]["data_files"] != after[0]["data_files"]:
            return "–"
        parts.append(difference(*outcomes))
    return mean_of(parts).text("+.1f")


def _names(models: list[list[dict]]) -> list[str]:
    """Returns each model's name or, if it is not unique, the user's argument, else its source."""
    firsts = [records[0] for records in models]
    names = []
    for first in firsts:
        for key in ("model", "checkpoint", "source"):
            if [other[key] for other in firsts].count(first[key]) == 1:
                break
        names.append(first[key])
    return names
