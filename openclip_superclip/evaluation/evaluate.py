"""Evaluates every model on every data set, and writes each result immediately."""

import functools
import time
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn
from tqdm import tqdm

from ..environment import versions
from ..files import file_identity, make_folder, write_json, write_text
from .datasets import DENSE, Data, Selection
from .dense import PatchMaps, dense_probe, whole_image
from .features import EvaluationRanks, Features, cache_features, read_features
from .models import Evaluated, open_model
from .outcomes import estimate, write_outcomes
from .results import OF_FEATURES, PACKAGES, differences, file_name, read_record, read_records, record_file, table
from .tasks import Settings, evaluate


def result_folders(models: list[Evaluated], out: Path | None, sweep: bool) -> list[Path]:
    """Creates and returns the folder of each model's results: `out`, or one below its run.

    Args:
        sweep: whether the models are interpolated with released weights, and so not results of the run.
    """
    within = Path("evaluation/wise_ft" if sweep else "evaluation")
    folders = [out or (model.run / within if model.run else within) for model in models]
    for folder in folders:
        make_folder(folder, "--out")
    return folders


def write_tables(folders: list[Path]) -> None:
    """Writes summary.md, the table of all results in a folder, into each folder."""
    for folder in dict.fromkeys(folders):
        if models := read_records(folder):
            write_text(folder / "summary.md", f"{table(models)}\n")


@dataclass
class Results:
    """All results of a call, computed or read, and its errors."""

    models: list[list[dict]] = field(default_factory=list)  # the results of each model, if there are any
    failures: list[str] = field(default_factory=list)
    num_read: int = 0

    def summary(self, selection: Selection, folders: list[Path]) -> str:
        """Returns the tables and a list of missing results."""
        parts = [table(self.models), differences(self.models)] if self.models else []
        num_results = sum(map(len, self.models))
        lines = [
            f"{num_results} results, {self.num_read} of them from before: {', '.join(dict.fromkeys(map(str, folders)))}"
        ]
        if selection.absent:
            lines.append(f"Not evaluated: {', '.join(selection.absent)}")
        return "\n\n".join(filter(None, [*parts, "\n".join(lines)]))


def evaluate_all(
    models: list[Evaluated],
    folders: list[Path],
    chosen: list[tuple[Data, str]],
    settings: Settings,
    command: str,
    ranks: EvaluationRanks,
) -> Results:
    """Evaluates all models on every chosen data set; continues after errors.

    The ranks share the images; only the first one computes metrics and has results.

    Args:
        folders: the folder of each model's results; existing results that are still valid are read.
        command: the command line, recorded in the results.
    """
    results, total = Results(), len(models) * len(chosen)
    with tqdm(total=total, desc="evaluate", unit=" results", disable=None if ranks.is_first else True) as progress:
        for model, folder in zip(models, folders, strict=True):
            if records := _evaluate_model(model, folder, chosen, settings, command, progress, ranks, results):
                results.models.append(records)
    return results


def _evaluate_model(model, folder, chosen, settings, command, progress, ranks, results: Results) -> list[dict]:
    """Returns the results of a model, and adds read results and errors to `results`."""
    source = model.source_from(folder)
    planned = []  # (data, task, file, facts)
    for data, task in chosen:
        part = f"{task}.tuned" if task in DENSE and settings.finetune else task  # frozen and fine-tuned
        file = record_file(folder, model.name, data.name, part, source)
        planned.append((data, task, file, _expected(model, source, data, task, settings)))
    found = ranks.of_first([read_record(file, facts) for *_, file, facts in planned])
    records = [record for record in found if record]
    results.num_read += len(records)
    progress.update(len(records))
    if len(records) == len(chosen):
        return records
    try:
        with ranks.together():
            opened = open_model(model, settings.device)
    except Exception as error:  # for example a failed download, or out of memory
        results.failures.append(f"{model.given} cannot be opened: {_last_line(error)}")
        return records
    for (data, task, file, facts), record in zip(planned, found, strict=True):
        if record:
            continue
        progress.set_postfix_str(f"{model.name}, {data.name}")
        started = time.monotonic()
        try:
            by_split = _features(opened, model, folder, data, task, settings, ranks)
            if ranks.is_first:
                made = _measure(opened, data, task, settings, by_split, file.with_suffix(".outcomes.npz"))
                seconds = round(time.monotonic() - started, 2)
                record = {**facts, **made, "command": command, "seconds": seconds}
                write_json(file, record, allow_nan=False)
                records.append(record | {"file": str(file)})
        except (Exception, SystemExit) as error:  # broken data can raise any exception, and CLIP_benchmark may exit
            results.failures.append(f"{model.given}: {task} on {data.name} ({data.folder}) failed: {_last_line(error)}")
        progress.update()
    return records


def _features(opened, model, folder, data, task, settings, ranks) -> dict[str, Features]:
    """Returns the features of every split that a task reads; fine-tuned towers have none."""
    encoder, transform, _ = opened
    if task in DENSE:
        encoder, transform = PatchMaps(encoder), whole_image(encoder)
    by_split = {}
    for split in () if task in DENSE and settings.finetune else settings.splits(task):
        facts = {
            "model": model.name, "weights": model.weights_id, "data": data.name, "split": split,
            "data_files": data.files_id((split,), images_only=True), "precision": settings.precision,
            "versions": versions(*OF_FEATURES),
        }  # fmt: skip
        place = folder / "features" / file_name((model.name, data.name, split), facts)
        build = functools.partial(data.build, transform, split, task)
        options = settings.batch_size, settings.workers, settings.autocast
        cache_features(place, encoder, data, build, *options, facts, ranks)
        by_split[split] = read_features(place)
    return by_split


def _measure(opened: tuple[nn.Module, ...], data, task, settings, by_split, outcomes_at: Path) -> dict:
    """Returns metrics and intervals, and writes the outcomes of which they are computed."""
    network, transform, tokenizer = opened
    if task in DENSE:
        train, test = (data.build(whole_image(network), split, task) for split in ("train", "test"))
        metrics, outcomes = dense_probe(network, train, test, by_split, settings)
    else:
        dataset = data.build(transform, "test", task)
        metrics, outcomes = evaluate(network, tokenizer, dataset, task, settings, by_split)
    write_outcomes(outcomes_at, outcomes)
    intervals = {name: estimate(outcome, data.name)[1:] for name, outcome in outcomes.items()}
    return {"metrics": metrics, "intervals": intervals}


def _expected(model: Evaluated, source: str, data: Data, task: str, settings: Settings) -> dict:
    """Returns the provenance recorded in a result."""
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
        "settings": settings.of_task(task),
        "device": settings.device,
        "versions": versions(*PACKAGES),
    }


def _last_line(error: BaseException) -> str:
    """Returns the last line of an error, without a data loader's traceback before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:600] if lines else type(error).__name__
