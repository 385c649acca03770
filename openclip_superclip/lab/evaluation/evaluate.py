"""Evaluates every model on every data set, and writes each result immediately."""

import functools
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from tqdm import tqdm

from ...environment import versions
from ...errors import one_line
from ...files import make_folder, write_json
from ...method.head_input import patch_map, patch_tokens
from .datasets import DENSE, Data, Features, Settings, encode
from .dense import dense_probe, whole_image
from .intervals import NO_INTERVAL, Outcome, estimate, write_outcomes
from .metrics import evaluate
from .models import Evaluated, open_model
from .results import PACKAGES, differences, read_record, record_file, table


@dataclass
class Results:
    """All results of a call, computed or read, their folders, one for each model, and its
    errors."""

    folders: list[Path]
    # the results of each model, if there are any
    models: list[list[dict]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    num_read: int = 0

    def summary(self, absent: list[str]) -> str:
        """Returns the tables and the lists of result folders and of missing data sets."""
        parts = [table(self.models), differences(self.models)] if self.models else []
        if any("[–]" in part for part in parts):
            parts.append(NO_INTERVAL)
        num_results, places = (
            sum(map(len, self.models)),
            ", ".join(dict.fromkeys(map(str, self.folders))),
        )
        lines = [f"{num_results} results, {self.num_read} of them from before: {places}"]
        if absent:
            lines.append(f"Not evaluated: {', '.join(absent)}")
        return "\n\n".join(filter(None, [*parts, "\n".join(lines)]))


def evaluate_all(
    models: list[Evaluated],
    out: Path | None,
    chosen: list[tuple[Data, str]],
    settings: Settings,
    command: str,
) -> Results:
    """Evaluates all models on every chosen data set, into `out` or a folder below each run;
    continues after errors.

    Valid results in these folders are read. The `command` line is recorded in the results.
    """
    results = Results(
        [out or (model.run / "evaluation" if model.run else Path("evaluation")) for model in models]
    )
    for folder in results.folders:
        make_folder(folder, "--out")
    # once: a data set can have a million files
    digests = {data: data.files_id() for data, _ in chosen}
    with tqdm(
        total=len(models) * len(chosen), desc="evaluate", unit=" results", disable=None
    ) as progress:
        for model, folder in zip(models, results.folders, strict=True):
            if records := _evaluate_model(
                model, folder, chosen, digests, settings, command, progress, results
            ):
                results.models.append(records)
    return results


def _evaluate_model(
    model, folder, chosen, digests, settings, command, progress, results: Results
) -> list[dict]:
    """Returns the results of a model, and adds the number of read ones and errors to `results`."""
    # Relative to the results, so that both can be moved together.
    source = os.path.relpath(model.place, folder.resolve()) if model.place else model.given
    records, planned = [], []
    for data, task in chosen:
        file = record_file(folder, model.name, data.name, task, source)
        facts = _facts(model, source, data, task, settings) | {"data_files": digests[data]}
        if record := read_record(file, facts):
            records.append(record)
        else:
            planned.append((data, task, file, facts))
    results.num_read += len(records)
    progress.update(len(records))
    if not planned:
        return records
    try:
        opened = open_model(model, settings.device)
    except Exception as error:  # for example a failed download, or out of memory
        results.failures.append(f"{model.given} cannot be opened: {one_line(error)}")
        return records
    cache: dict[tuple[str, str], Features] = {}
    for data, task, file, facts in planned:
        progress.set_postfix_str(f"{model.name}, {data.name}")
        started = time.monotonic()
        try:
            metrics, outcomes = _measure(opened, data, task, settings, cache)
            file.unlink(missing_ok=True)  # so that a stop between the two files leaves no result
            write_outcomes(file.with_suffix(".outcomes.npz"), outcomes)
            record = {
                **facts,
                "metrics": metrics,
                "intervals": {
                    name: estimate(outcome).limits() for name, outcome in outcomes.items()
                },
                "command": command,
                "seconds": round(time.monotonic() - started, 2),
            }
            write_json(file, record, allow_nan=False)
            records.append(record | {"file": str(file)})
        except (Exception, SystemExit) as error:
            # broken data can raise any exception, and CLIP_benchmark may exit
            results.failures.append(
                f"{model.given}: {task} on {data.name} ({data.folder}) failed: {one_line(error)}"
            )
        progress.update()
    return records


def _measure(
    opened, data: Data, task: str, settings: Settings, cache: dict
) -> tuple[dict, dict[str, Outcome]]:
    """Returns metrics and outcomes.

    Adds image features to `cache`, by data set and split, and reads them from it."""
    network, transform, tokenizer = opened
    if task in DENSE:
        read = functools.partial(patch_map, network.visual, patch_tokens(network.visual))
        encoder, transform = SimpleNamespace(encode_image=read), whole_image(network)
        splits = {split: data.build(transform, split, task) for split in ("train", "test")}
        tokens = {
            split: encode(encoder, data, dataset, settings).images
            for split, dataset in splits.items()
        }
        return dense_probe(splits, tokens, settings)
    for split in ("train", "test") if task == "linear_probe" else ("test",):
        if (data.name, split) not in cache:
            cache[data.name, split] = encode(
                network, data, data.build(transform, split, task), settings
            )
    by_split = {split: features for (name, split), features in cache.items() if name == data.name}
    return evaluate(
        network, tokenizer, data.build(transform, "test", task), task, settings, by_split
    )


def _facts(model: Evaluated, source: str, data: Data, task: str, settings: Settings) -> dict:
    """Returns what a result depends on, and its source."""
    return {
        "model": model.name,
        "checkpoint": model.given,
        "source": source,
        "dataset": data.name,
        "task": task,
        "epoch": model.epoch,
        "weights": model.weights_id,
        "data": str(data.folder),
        "settings": settings.of_task(task),
        "device": settings.device,
        "versions": versions(*PACKAGES),
    }
