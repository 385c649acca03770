"""The evaluation itself: every model on every data set, each result kept as soon as it is there."""

import contextlib
import functools
import math
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ..environment import versions
from ..files import file_identity, make_folder, whole_file, write_text
from ..pages import pyplot
from .datasets import DENSE, FITTED, Data, Selection, other_data
from .dense import PatchMaps, dense_probe, whole_picture
from .features import EvaluationRanks, Features, feature_folder, keep_features, read_features
from .models import Evaluated, open_model
from .outcomes import estimate, write_outcomes
from .results import (
    NOT_IN_CLIP_BENCHMARK,
    OF_FEATURES,
    PACKAGES,
    differences,
    outcomes_file,
    read_record,
    read_records,
    record_file,
    scores_with_intervals,
    table,
    write_record,
)
from .tasks import FiniteFeatures, Settings, evaluate


def draw_sweep(path: Path, alphas: list[float], models: list[list[dict]]) -> bool:
    """Draws a PNG, a panel a measure: the score over α, with its 95 % interval over the test samples.

    Returns whether there was a score to draw.

    Args:
        models: the results at each α.
    """
    plt = pyplot()
    rows = {label: found for label, found in scores_with_intervals(models).items() if all(found)}
    if not rows:
        return False
    columns = min(3, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(3.3 * columns, 0.4 + 2.5 * lines), squeeze=False, layout="constrained"
    )
    for axes in list(grid.flat)[len(rows) :]:
        axes.set_axis_off()
    for axes, (label, found) in zip(grid.flat, rows.items(), strict=False):
        axes.plot(alphas, [score.value for score in found], marker="o", markersize=4, color="#d1495b")
        if all(score.interval for score in found):
            low, high = zip(*(score.interval for score in found), strict=True)
            axes.fill_between(alphas, low, high, alpha=0.2, color="#d1495b")
        axes.set_title(label if label.endswith(", cm") else f"{label}, %", fontsize=9)
        axes.set_xlabel("α: 0 released, 1 tuned")
        axes.grid(alpha=0.3)
    with whole_file(path) as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)
    return True


RESULTS = Path("evaluation")  # below a run's folder
SWEEP = RESULTS / "wise_ft"  # a sweep is no result of the run


def result_folders(models: list[Evaluated], out: Path | None, sweep: bool) -> list[Path]:
    """Makes and returns the folder of each model's results: `out`, or one below its run.

    Args:
        sweep: whether the models lie between released weights and tuned ones.
    """
    within = SWEEP if sweep else RESULTS
    folders = [out or (model.run / within if model.run else within) for model in models]
    for folder in folders:
        make_folder(folder, "--out")
    return folders


def write_tables(folders: list[Path]) -> None:
    """Writes summary.md, the table of all results that a folder holds, into each folder."""
    for folder in dict.fromkeys(folders):
        if models := read_records(folder):
            write_text(folder / "summary.md", f"{table(models)}\n")


class Outcome(NamedTuple):
    """All results of a call, computed or read, and what went wrong."""

    models: list[list[dict]]  # the results of each model that has any
    failures: list[str]
    num_read: int

    @property
    def num_results(self) -> int:
        return sum(map(len, self.models))


def told(outcome: Outcome, selection: Selection, data: Path, folders: list[Path]) -> str:
    """Returns the tables of a call's results and what is missing from them, for people."""
    parts = []
    if outcome.models:
        parts.append(printed := table(outcome.models))
        if ahead := differences(outcome.models):
            parts.append(ahead)
        if "\n| datacomp38" in printed:
            parts.append(
                f"DataComp's 38 hold {', '.join(NOT_IN_CLIP_BENCHMARK)} as well, of which CLIP_benchmark has none."
            )
    where = ", ".join(map(str, dict.fromkeys(folders)))
    lines = [f"{outcome.num_results} results, {outcome.num_read} of them from before: {where}"]
    if selection.absent:
        lines.append(f"Not evaluated: {', '.join(selection.absent)}")
    if others := other_data(data, selection):
        lines.append(f"In {data}, but in no suite's list: {', '.join(others)}; --datasets evaluates them")
    return "\n\n".join([*parts, "\n".join(lines)])


def evaluate_all(
    models: list[Evaluated],
    folders: list[Path],
    chosen: list[tuple[Data, str]],
    settings: Settings,
    command: str,
    ranks: EvaluationRanks,
) -> Outcome:
    """Evaluates all models on every chosen data set and returns what came out; a failure costs no other result.

    The ranks share the pictures, and the first one alone computes metrics and has results.

    Args:
        folders: where each model's results are written, and read if an earlier call has left them there.
        command: to be written into the results.
    """
    outcomes = []
    total = len(models) * len(chosen)
    with tqdm(total=total, desc="evaluate", unit=" results", disable=None if ranks.is_first else True) as progress:
        for model, folder in zip(models, folders, strict=True):
            outcomes.append(_evaluate_model(model, folder, chosen, settings, command, progress, ranks))
    return Outcome(
        [records for outcome in outcomes for records in outcome.models if records],
        [failure for outcome in outcomes for failure in outcome.failures],
        sum(outcome.num_read for outcome in outcomes),
    )


def _evaluate_model(model, folder, chosen, settings, command, progress, ranks) -> Outcome:
    source = model.source_from(folder)
    expected = [_expected(model, source, data, task, settings) for data, task in chosen]
    tuned = ".tuned" if settings.finetune else ""
    named = [(data.name, f"{task}{tuned}" if task in DENSE else task) for data, task in chosen]  # frozen beside tuned
    files = [record_file(folder, model.name, *names, source) for names in named]
    found = [read_record(file, facts) for file, facts in zip(files, expected, strict=True)]
    found = ranks.of_first(found)
    records, failures = [record for record in found if record], []
    num_read = len(records)
    progress.update(num_read)
    if num_read == len(chosen):
        return Outcome([records], failures, num_read)
    error = None
    try:
        opened = open_model(model, settings.device)
    except Exception as raised:  # weights that cannot be fetched, a model that does not fit the GPU
        error = raised
    try:
        ranks.raise_together(error)
    except Exception as raised:
        return Outcome([records], [f"{model.given} cannot be opened: {_reason(raised)}"], num_read)
    for (data, task), file, facts, record in zip(chosen, files, expected, found, strict=True):
        if record:
            continue
        progress.set_postfix_str(f"{model.name}, {data.name}")
        started = time.monotonic()
        try:
            by_split = _features(opened, model, folder, data, task, settings, ranks)
            if ranks.is_first:
                made = _record(opened, data, task, settings, by_split, outcomes_file(file))
                seconds = round(time.monotonic() - started, 2)
                record = {**facts, **made, "command": command, "seconds": seconds}
                write_record(file, record)
                records.append(record | {"file": str(file)})
        except (Exception, SystemExit) as error:  # a broken data set raises anything, and CLIP_benchmark may exit
            failures.append(f"{model.given}: {task} on {data.name} ({data.folder}) failed: {_reason(error)}")
        progress.update()
    return Outcome([records], failures, num_read)


def _features(opened, model, folder, data, task, settings, ranks) -> dict[str, Features]:
    """Returns the features of every split that a task reads, computed where they are not kept yet."""
    network, transform, _ = opened
    encoder = FiniteFeatures(network)
    if task in DENSE:
        encoder, transform = FiniteFeatures(PatchMaps(network)), whole_picture(network)
    by_split = {}
    for split in settings.splits(task):
        if task in DENSE and settings.finetune:  # nothing is frozen
            continue
        facts = {
            "model": model.name, "weights": model.weights_id, "data": data.name, "split": split,
            "data_files": data.files_id((split,), pictures_alone=True), "precision": settings.precision,
            "versions": versions(*OF_FEATURES),
        }  # fmt: skip
        place = feature_folder(folder, model.name, data, split, facts)
        build = functools.partial(_build, data, transform, split, task)
        options = settings.batch_size, settings.workers, settings.autocast
        keep_features(place, encoder, data, build, *options, facts, ranks)
        by_split[split] = read_features(place)
    return by_split


def _build(data: Data, transform, split: str, task: str):
    """Returns CLIP_benchmark's data set, without what it prints."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        return data.build(transform, split, "linear_probe" if task in FITTED else task)


def _record(opened, data, task, settings, by_split, outcomes_at: Path) -> dict:
    """Returns metrics and intervals, once the outcomes that they are made of are written."""
    network, transform, tokenizer = opened
    if task in DENSE:
        train, test = (data.build(whole_picture(network), split, data.kind) for split in ("train", "test"))
        metrics, outcomes = dense_probe(network, train, test, by_split, settings.dense)
    else:
        dataset = _build(data, transform, "test", task)
        metrics, outcomes = evaluate(FiniteFeatures(network), tokenizer, dataset, task, settings, by_split)
    write_outcomes(outcomes_at, outcomes)
    intervals = {name: estimate(outcome, data.name)[1:] for name, outcome in outcomes.items()}
    return {"metrics": metrics, "intervals": intervals}


def _expected(model: Evaluated, source: str, data: Data, task: str, settings: Settings) -> dict:
    """Returns what a result says of where it comes from."""
    return {
        "model": model.name,
        "checkpoint": model.given,
        "source": source,
        "dataset": data.name,
        "task": task,
        "epoch": model.epoch,
        "weights": model.weights_id,
        "checkpoint_file": file_identity(Path(model.given)),
        "tokenizer": model.tokenizer_id,
        "data": str(data.folder),
        "data_files": data.files_id(settings.splits(task)),
        "settings": settings.that_matter(task),
        "device": settings.device,
        "versions": versions(*PACKAGES),
    }


def _reason(error: BaseException) -> str:
    """Returns the last line of what went wrong: a data loader's process puts its traceback before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:600] if lines else type(error).__name__
