"""The evaluation itself: every model on every data set, each result kept as soon as it is there."""

import contextlib
import functools
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ..atomic_files import whole_file
from ..checkpoints.file_identity import file_identity
from ..versions import versions
from .bootstrap import draws, interval
from .datasets import FITTED, Data
from .dense_data import DENSE, SEGMENTATION
from .dense_probe import PatchMaps, dense_probe, neighbour_maps, whole_picture
from .evaluation_ranks import EvaluationRanks
from .kept_features import Features, feature_folder, keep_features, read_features
from .metrics import Settings, evaluate
from .models import Evaluated, open_model
from .outcomes import write_outcomes
from .result_files import OF_FEATURES, PACKAGES, neighbours_file, outcomes_file, read_record, record_file, write_record
from .score_checks import FiniteFeatures


class Outcome(NamedTuple):
    """All results of a call, computed or read, and what went wrong."""

    models: list[list[dict]]  # the results of each model that has any
    failures: list[str]
    num_read: int

    @property
    def num_results(self) -> int:
        return sum(map(len, self.models))


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
    with tqdm(total=total, desc="evaluate", unit=" results", disable=not ranks.is_first) as progress:
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
        return _dense_record(network, data, settings, by_split, outcomes_at)
    dataset = _build(data, transform, "test", task)
    metrics, outcomes = evaluate(FiniteFeatures(network), tokenizer, dataset, task, settings, by_split)
    write_outcomes(outcomes_at, outcomes)
    intervals = {name: interval(draws([outcome], data.name)[:, 0]) for name, outcome in outcomes.items()}
    return {"metrics": metrics, "intervals": intervals}


def _dense_record(network, data: Data, settings: Settings, by_split: dict[str, Features], outcomes_at: Path) -> dict:
    """Returns metric and interval of segmentation or depth, and leaves the neighbours' maps beside the outcomes."""
    train, test = (data.build(whole_picture(network), split, data.kind) for split in ("train", "test"))
    metrics, outcomes = dense_probe(network, train, test, by_split, settings.dense)
    write_outcomes(outcomes_at, outcomes)
    if by_split and data.kind == SEGMENTATION:
        with whole_file(neighbours_file(outcomes_at)) as file:
            np.savez_compressed(file, **neighbour_maps(train, test, by_split, settings.dense.seed))
    intervals = {name: interval(draws([outcome], data.name)[:, 0]) for name, outcome in outcomes.items()}
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
