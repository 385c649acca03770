"""The evaluation itself: every model on every data set, each result kept as soon as it is there."""

import time
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ..checkpoints.file_identity import file_identity
from ..versions import versions
from .datasets import Data
from .metrics import Settings, evaluate
from .models import Evaluated, open_model
from .result_files import PACKAGES, read_record, record_file, write_record


class Outcome(NamedTuple):
    """All results of a call, computed or read, and what went wrong."""

    models: list[list[dict]]  # the results of each model that has any
    failures: list[str]
    num_read: int

    @property
    def num_results(self) -> int:
        return sum(map(len, self.models))


def evaluate_all(
    models: list[Evaluated], folders: list[Path], chosen: list[tuple[Data, str]], settings: Settings, command: str
) -> Outcome:
    """Evaluates all models on every chosen data set and returns what came out; a failure costs no other result.

    Args:
        folders: where each model's results are written, and read if an earlier call has left them there.
        command: to be written into the results.
    """
    outcomes = []
    with tqdm(total=len(models) * len(chosen), desc="evaluate", unit=" results") as progress:
        for model, folder in zip(models, folders, strict=True):
            outcomes.append(_evaluate_model(model, folder, chosen, settings, command, progress))
    return Outcome(
        [records for outcome in outcomes for records in outcome.models if records],
        [failure for outcome in outcomes for failure in outcome.failures],
        sum(outcome.num_read for outcome in outcomes),
    )


def _evaluate_model(model, folder, chosen, settings, command, progress) -> Outcome:
    source = model.source_from(folder)
    expected = [_expected(model, source, data, task, settings) for data, task in chosen]
    files = [record_file(folder, model.name, data.name, task, source) for data, task in chosen]
    found = [read_record(file, facts) for file, facts in zip(files, expected, strict=True)]
    records, failures = [record for record in found if record], []
    num_read = len(records)
    progress.update(num_read)
    if num_read == len(chosen):
        return Outcome([records], failures, num_read)
    try:
        opened = open_model(model, settings.device)
    except Exception as error:  # weights that cannot be fetched, a model that does not fit the GPU
        return Outcome([records], [f"{model.given} cannot be opened: {_reason(error)}"], num_read)
    for (data, task), file, facts, record in zip(chosen, files, expected, found, strict=True):
        if record:
            continue
        progress.set_postfix_str(f"{model.name}, {data.name}")
        started = time.monotonic()
        try:
            metrics = evaluate(opened, data, task, settings)
            seconds = round(time.monotonic() - started, 2)
            record = {**facts, "metrics": metrics, "command": command, "seconds": seconds}
            write_record(file, record)
            records.append(record)
        except (Exception, SystemExit) as error:  # a broken data set raises anything, and CLIP_benchmark may exit
            failures.append(f"{model.given}: {task} on {data.name} ({data.folder}) failed: {_reason(error)}")
        progress.update()
    return Outcome([records], failures, num_read)


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
    return lines[-1][:300] if lines else type(error).__name__
