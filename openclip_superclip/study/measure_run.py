"""Measures a trained run of a study, once for the same weights and versions."""

import os
import shlex
import threading
from collections.abc import Callable
from pathlib import Path

from ..checkpoints.best_epoch import best_epoch
from ..checkpoints.resume_record import versions_of_run
from ..checkpoints.trainer_files import checkpoints
from ..checkpoints.weights import read_checkpoint
from ..demo.data import SECOND_DRAW
from ..demo.scene_measures import Measures, OpenedModel, measure, measure_natural, measure_transfer
from ..demo.scenes import UNSEEN_DESIGNERS
from ..errors import InputError
from ..evaluation.dense_datasets import DEPTH, SEGMENTATION
from ..evaluation.result_files import record_file
from ..files import content_digest, json_or_empty, read_json, write_json
from ..reports.run_scores import of_training
from ..runs.child_processes import last_line
from ..words.open_checkpoint import open_checkpoint
from .study_run import StudyRun
from .superclip_process import run_superclip

DENSE_SCENES = "dense"  # below the demo's folder
DENSE_EPOCHS = 2  # of the linear map: 10 overfit its scenes, which lowers CLIP's mIoU
# by what measures a run on the demo's scenes: the options of `measure`
SCENES_OF = {
    "demo": {},
    "unseen-drawings": {"designers": UNSEEN_DESIGNERS},
    "second-draw": {
        "seed": SECOND_DRAW.seed,
        "designers": SECOND_DRAW.designers,
        "trained_on": SECOND_DRAW.designers,
    },
}
# by data set: the study's name of the measure, and the task and the metric of `superclip evaluate`
DENSE = {
    "demo_masks": ("mIoU", SEGMENTATION, "miou"),
    "demo_depth": ("depth_RMSE", DEPTH, "rmse"),
}


def open_trained(weights: Path, model: str) -> OpenedModel:
    """Returns (model in evaluation mode, preprocess, tokenizer) of a checkpoint; `model` is the
    run's --model."""
    opened = open_checkpoint(read_checkpoint(weights), model)
    return opened.model, opened.preprocess(), opened.tokenizer


def measured(run: StudyRun, stop: threading.Event) -> dict:
    """Returns the digest of a trained run's weights, its CPU seconds and its measures.

    It is measured now, unless the same versions have measured the same weights. InputError if
    `stop` ends that.
    """
    last_epoch, weights = _last_checkpoint(run)
    record = {
        "run": run.folder.name,
        "checkpoint": content_digest(weights)[:16],
        "cpu_seconds": run.cpu_seconds,
        "versions": versions_of_run(),
    }
    if run.measures == "validation":
        best = best_epoch(run.folder)
        record |= {"best_epoch": best.epoch if best else None, "epochs": last_epoch}
    file = run.folder / f"{run.measures}-{run.split}.json"
    earlier = json_or_empty(file)
    is_same = all(earlier.get(name) == record[name] for name in ("checkpoint", "versions"))
    measures = earlier.get("measures") if is_same else None
    record["measures"] = measures or _measure(run, weights, stop)
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


def _measure(run: StudyRun, weights: Path, stop: threading.Event) -> Measures:
    measures = run.measures
    if measures == "dense-scenes":
        scenes = run.call.options.scenes / DENSE_SCENES
        return measure_dense(weights, scenes, stop.is_set)
    if measures == "validation":
        return of_training(run.folder)
    model = open_trained(weights, run.recipe.model)
    if measures == "natural":
        return measure_natural(model, split=run.split, seed=run.seed)
    if measures == "transfer":
        return measure_transfer(model, run.split, run.seed)
    return measure(model, run.split, **SCENES_OF[measures])


def measure_dense(weights: Path, scenes: Path, is_to_stop: Callable[[], bool]) -> Measures:
    """Returns the mean IoU of the scenes' classes in percent, and the RMSE of their depths in
    centimetres.

    They are of a linear map of the frozen patch tokens. `weights` are RUN/checkpoints/epoch_N.pt;
    the results are in RUN/evaluation, as if `superclip evaluate` had been called by hand.
    `write_dense_scenes` has filled `scenes`.
    """
    run = weights.parent.parent
    out = run / "evaluation"
    output = run / "evaluation.output"
    command = ["evaluate", str(weights), "--data", str(scenes), "--out", str(out)]
    command += ["--suite", "dense", "--datasets", *DENSE, "--dense-epochs", str(DENSE_EPOCHS)]
    command += ["--device", "cpu", "--workers", "0"]
    exit_code, _ = run_superclip(command, output, one_thread=True, is_to_stop=is_to_stop)
    if exit_code != 0:
        raise InputError(
            f"{shlex.join(['superclip', *command])} failed: {last_line(output)}; see {output}"
        )
    output.unlink()
    model = f"{run.resolve().name}/{weights.stem}"
    source = os.path.relpath(weights.parent.resolve() / weights.name, out.resolve())
    measures = {}
    for dataset, (name, task, metric) in DENSE.items():
        record = read_json(record_file(out, model, dataset, task, source))
        measures[name] = 100 * record["metrics"][metric]
    return measures
