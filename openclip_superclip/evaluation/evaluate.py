"""Evaluates every model on every data set, and writes each result immediately."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..environment import versions
from ..errors import one_line, printable
from ..files import file_identity, folder_digest, make_folder
from .features import EvaluationSettings, Features, encode
from .local_datasets import LocalDataset
from .metrics import Measured, evaluate
from .models import EvaluatedModel, OpenedModel, open_model
from .result_files import PACKAGES, ResultFile, record_file, source_of


@dataclass
class Evaluation:
    """An evaluation of models on chosen data sets, each with its task.

    Results are written into RUN/evaluation, or into `out` for models that are not in the folder of
    a run. The `command` line is recorded in the results.
    """

    chosen: list[tuple[LocalDataset, str]]
    settings: EvaluationSettings
    out: Path
    command: str

    def __post_init__(self):
        self.num_reused = 0  # results
        # once: a data set can have a million files
        self.digests = {dataset: folder_digest(dataset.folder) for dataset, _ in self.chosen}

    def run(self, models: list[EvaluatedModel]) -> Iterator[str]:
        """Evaluates all models on every data set; continues after errors, and yields each."""
        folders = []
        for model in models:
            is_in_run = model.run is not None and os.access(model.run, os.W_OK)
            folders.append(model.run / "evaluation" if is_in_run else self.out)
        for folder in folders:
            make_folder(folder)
        for model, folder in zip(models, folders, strict=True):
            yield from self._run_model(model, folder)

    def _run_model(self, model: EvaluatedModel, folder: Path) -> Iterator[str]:
        planned = []
        identity = file_identity(model.path) if model.path else None
        for dataset, task in self.chosen:
            file = self._result_file(model, identity, folder, dataset, task)
            if file.is_current():
                self.num_reused += 1
            else:
                planned.append((dataset, task, file))
        if not planned:
            return
        try:
            opened = open_model(model, self.settings.device)
        except Exception as error:  # for example a failed download, or out of memory
            yield f"{model.argument} cannot be opened: {one_line(error)}"
            return
        cache = {}
        title = printable(model.name)
        for dataset, task, file in tqdm(planned, desc=title, unit=" results", disable=None):
            try:
                file.write(*self._measure(opened, dataset, task, cache))
            except (Exception, SystemExit) as error:
                # broken data can raise any exception, and CLIP_benchmark may exit
                yield (
                    f"{model.argument}: {task} on {dataset.name} ({dataset.folder}) failed: "
                    f"{one_line(error)}"
                )

    def _result_file(
        self,
        model: EvaluatedModel,
        identity: str | None,
        folder: Path,
        dataset: LocalDataset,
        task: str,
    ) -> ResultFile:
        source = source_of(model.argument, folder)
        facts = {
            "model": model.name,
            "source": source,
            "source_id": identity,
            "dataset": dataset.name,
            "task": task,
            "epoch": model.epoch,
            "weights": model.weights_id,
            "settings": self.settings.of_task(task),
            "versions": versions(*PACKAGES),
            "data_files": self.digests[dataset],
        }
        about = {
            "checkpoint": model.argument,
            "data": str(dataset.folder),
            "command": self.command,
        }
        path = record_file(folder, model.name, dataset.name, task, source)
        return ResultFile(path, facts, about)

    def _measure(
        self,
        opened: OpenedModel,
        dataset: LocalDataset,
        task: str,
        cache: dict[tuple[LocalDataset, str], Features],
    ) -> Measured:
        """Returns metrics and numbers of outcomes. Features are kept in `cache` for the next
        task."""
        splits = {}
        features = {}
        for split in ("train", "test") if task == "linear_probe" else ("test",):
            splits[split] = dataset.build(opened.transform, split, task)
            if (dataset, split) not in cache:
                cache[dataset, split] = encode(
                    opened.model.encode_image, dataset, splits[split], self.settings
                )
            features[split] = cache[dataset, split]
        return evaluate(
            opened.model, opened.tokenizer, splits["test"], task, self.settings, features
        )
