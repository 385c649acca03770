"""Evaluates every model on every data set, and writes each result immediately."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..environment import versions
from ..errors import one_line, printable
from ..files import file_identity, files_digest, make_folder
from ..method.head_input import patch_map, patch_tokens
from .dense_datasets import DENSE
from .dense_probe import dense_probe
from .features import EvaluationSettings, Features, encode
from .intervals import Measured
from .local_datasets import LocalDataset
from .metrics import evaluate
from .models import EvaluatedModel, OpenedModel, open_model
from .preprocessing import preprocessing
from .result_files import PACKAGES, ResultFile, record_file
from .score_table import tables

TRAINED = ("linear_probe", *DENSE)  # tasks that fit a layer to the training split


@dataclass
class Evaluation:
    """An evaluation of models on chosen data sets, each with its task.

    Results are written into `out` or a folder below each run, where valid ones are read. The
    `command` line is recorded in the results.
    """

    chosen: list[tuple[LocalDataset, str]]
    settings: EvaluationSettings
    out: Path | None
    command: str

    def __post_init__(self):
        self.folders = []  # of the results of each model
        self.results = []  # the results of each model, if there are any
        self.failures = []  # messages
        self.num_read = 0

    def run(self, models: list[EvaluatedModel]) -> None:
        """Evaluates all models on every data set; continues after errors."""
        self.folders = [self.out or (model.run or Path()) / "evaluation" for model in models]
        for folder in self.folders:
            make_folder(folder)
        # once: a data set can have a million files
        self.digests = {dataset: files_digest([dataset.folder]) for dataset, _ in self.chosen}
        for model, folder in zip(models, self.folders, strict=True):
            records = self._run_model(model, folder)
            if records:
                self.results.append(records)

    def _run_model(self, model: EvaluatedModel, folder: Path) -> list[dict]:
        """Returns the results of a model, read or computed."""
        records = []
        planned = []
        for dataset, task in self.chosen:
            file = self._result_file(model, folder, dataset, task)
            record = file.read()
            if record:
                records.append(record)
            else:
                planned.append((dataset, task, file))
        self.num_read += len(records)
        if not planned:
            return records
        try:
            opened = open_model(model, self.settings.device)
        except Exception as error:  # for example a failed download, or out of memory
            self.failures.append(f"{model.argument} cannot be opened: {one_line(error)}")
            return records
        cache = {}
        title = printable(model.name)
        for dataset, task, file in tqdm(planned, desc=title, unit=" results", disable=None):
            try:
                metrics, outcomes = self._measure(opened, dataset, task, cache)
                records.append(file.write(metrics, outcomes))
            except (Exception, SystemExit) as error:
                # broken data can raise any exception, and CLIP_benchmark may exit
                self.failures.append(
                    f"{model.argument}: {task} on {dataset.name} ({dataset.folder}) failed: "
                    f"{one_line(error)}"
                )
        return records

    def _result_file(
        self, model: EvaluatedModel, folder: Path, dataset: LocalDataset, task: str
    ) -> ResultFile:
        source = model.argument
        source_id = None
        if model.path:
            # relative to the results, so that both can be moved together
            source = os.path.relpath(model.path, folder.resolve())
            source_id = file_identity(model.path)
        facts = {
            "model": model.name,
            "source": source,
            "source_id": source_id,
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
        """Returns metrics and outcomes. Image features are kept in `cache` for the next task."""
        transform = opened.transform
        encode_image = opened.model.encode_image
        if task in DENSE:
            cache = {}  # patch tokens are too large to be kept, and have one task
            visual = opened.model.visual
            # the whole image, so that pixels keep their labels
            transform = preprocessing(opened.model, resize_mode="squash")
            encode_image = functools.partial(patch_map, visual, patch_tokens(visual))
        splits = {}
        features = {}
        for split in ("train", "test") if task in TRAINED else ("test",):
            splits[split] = dataset.build(transform, split, task)
            if (dataset, split) not in cache:
                cache[dataset, split] = encode(encode_image, dataset, splits[split], self.settings)
            features[split] = cache[dataset, split]
        if task in DENSE:
            return dense_probe(splits, features, self.settings)
        return evaluate(
            opened.model, opened.tokenizer, splits["test"], task, self.settings, features
        )

    def summary(self, absent: list[str]) -> str:
        """Returns the tables and the lists of result folders and of missing data sets."""
        num_results = sum(map(len, self.results))
        folders = ", ".join(dict.fromkeys(map(str, self.folders)))
        text = f"{num_results} results, {self.num_read} of them from before: {folders}"
        if absent:
            text += f"\nNot evaluated: {', '.join(absent)}"
        return f"{tables(self.results)}\n\n{text}" if self.results else text
