"""Measures a trained run of a study, once for the same weights and versions."""

from pathlib import Path

from ..checkpoints.best_epoch import best_epoch, validation_scores
from ..checkpoints.resume import versions_of_run
from ..checkpoints.trainer_files import checkpoints
from ..checkpoints.weights import read_checkpoint
from ..demo.measures import Measures, OpenedModel, measure
from ..errors import InputError
from ..files import content_digest, json_or_empty, write_json
from ..words.open_checkpoint import open_checkpoint
from .study_run import StudyRun


def measured(run: StudyRun) -> dict:
    """Returns the digest of a trained run's weights, its CPU seconds and its measures.

    It is measured now, unless the same versions have measured the same weights.
    """
    last_epoch, weights = _last_checkpoint(run)
    measures = run.configured.study.measures
    record = {
        "run": run.folder.name,
        "checkpoint": content_digest(weights)[:16],
        "cpu_seconds": run.cpu_seconds,
        "versions": versions_of_run(),
    }
    if measures == "validation":
        best = best_epoch(run.folder)
        record |= {"best_epoch": best.epoch if best else None, "epochs": last_epoch}
    file = run.folder / f"{measures}-{run.split}.json"
    earlier = json_or_empty(file)
    is_same = all(earlier.get(name) == record[name] for name in ("checkpoint", "versions"))
    record["measures"] = (earlier.get("measures") if is_same else None) or _measure(run, weights)
    write_json(file, record)
    return record


def _last_checkpoint(run: StudyRun) -> tuple[int, Path]:
    """Returns the last epoch and its checkpoint; InputError if it is missing."""
    by_epoch = checkpoints(run.folder / "checkpoints")
    epoch = run.state.get("epoch") or max(by_epoch, default=None)
    if epoch not in by_epoch:
        raise InputError(
            f"{run.folder} is finished but lacks its last checkpoint: remove it, to train the run "
            "again"
        )
    return epoch, by_epoch[epoch]


def _measure(run: StudyRun, weights: Path) -> Measures:
    if run.configured.study.is_of_scenes:
        return measure(open_trained(weights, run.recipe.model), run.split)
    return validation_scores(run.folder)


def open_trained(weights: Path, model: str) -> OpenedModel:
    """Returns (model in evaluation mode, preprocess, tokenizer) of a checkpoint; `model` is the
    run's --model."""
    opened = open_checkpoint(read_checkpoint(weights), model)
    return opened.model, opened.preprocess(), opened.tokenizer
