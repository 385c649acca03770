"""The measures of a study's trained run."""

import shlex
import threading
from collections.abc import Callable
from pathlib import Path

from torch import nn

from ..checkpoints.checkpoint import read_checkpoint
from ..checkpoints.run_outputs import checkpoints
from ..environment import versions
from ..errors import InputError
from ..files import content_digest, read_json, write_json
from ..runs.folder import RunFolder
from ..runs.process import run_superclip
from ..runs.recipe import read_recipe
from ..words.tagger import open_checkpoint
from .study_run import StudyRun, last_line

PACKAGES = ("openclip-superclip", "open_clip_torch", "torch", "webdataset", "numpy", "pillow")
DENSE_SCENES = "dense"  # below the demo's folder
EPOCHS = 2  # of the linear map: CLIP's mIoU is better than at 10, where the map overfits its scenes
DENSE = {"segmentation": ("mIoU", "miou"), "depth": ("depth_RMSE", "rmse")}  # the study's name, the result's


def open_trained(weights: Path, model: str) -> tuple[nn.Module, Callable, Callable]:
    """Returns (model in evaluation mode, preprocess, tokenizer) of a checkpoint; `model` is the run's --model."""
    opened = open_checkpoint(read_checkpoint(weights), model)
    return opened.model, opened.preprocess(), opened.tokenizer


def measured(run: StudyRun, measures: str, scenes: Path, stop: threading.Event) -> dict:
    """Returns the digest of a trained run's weights, its CPU seconds and its measures.

    It is measured now, unless the same versions have measured the same weights. InputError if `stop` ends that.
    `measures` is one of MEASURES, and `scenes` is the folder of the demo's model and scenes.
    """
    found = checkpoints(run.folder / "checkpoints")
    last = RunFolder(run.folder).record().get("plan", {}).get("epochs") or max(found, default=None)
    if last not in found:
        raise InputError(f"{run.folder} is finished but lacks its last checkpoint: remove it, to train the run again")
    weights, file = found[last], run.folder / f"{measures}-{run.split}.json"
    record = {
        "run": run.folder.name, "checkpoint": content_digest(weights)[:16], "cpu_seconds": run.cpu_seconds,
        "versions": versions(*PACKAGES),
    }  # fmt: skip
    before = read_json(file, default={})
    if before.get("measures") and all(before.get(name) == record[name] for name in ("checkpoint", "versions")):
        return {**record, "measures": before["measures"]}
    record["measures"] = _measure(run, weights, measures, scenes, stop)
    write_json(file, record)
    return record


def _measure(run: StudyRun, weights: Path, measures: str, scenes: Path, stop: threading.Event) -> dict[str, float]:
    if measures == "dense-scenes":
        return measure_dense(weights, scenes / DENSE_SCENES, stop.is_set)
    if measures == "validation":
        from .scores import of_training

        return {name.removesuffix(" (training's own)"): score for name, score in of_training(run.folder).items()}
    from ..demo.data import SECOND_DRAW
    from ..demo.measures import measure, measure_natural
    from ..demo.scenes import UNSEEN_DESIGNERS

    model = open_trained(weights, read_recipe(str(run.folder / "recipe.yaml")).model)
    if measures == "natural":
        return measure_natural(*model, split=run.split, seed=run.seed)
    second = SECOND_DRAW.designers
    options = {
        "unseen-drawings": {"designers": UNSEEN_DESIGNERS},
        "second-draw": {"designers": second, "trained_on": second, "seed": SECOND_DRAW.seed},
    }
    return measure(*model, split=run.split, **options.get(measures, {}))


def measure_dense(weights: Path, scenes: Path, is_to_stop: Callable[[], bool]) -> dict[str, float]:
    """Returns the mean IoU of the scenes' classes in percent, and the RMSE of their depths in centimetres.

    They are of a linear map of the frozen patch tokens. `weights` are RUN/checkpoints/epoch_N.pt; the results are in
    RUN/evaluation, as if `superclip evaluate` had been called by hand. `write_dense_scenes` has filled `scenes`.
    """
    out = weights.parent.parent / "evaluation"
    output = out.with_name("evaluation.output")
    command = [
        "evaluate", str(weights), "--data", str(scenes), "--suite", "dense", "--datasets", "demo_masks", "demo_depth",
        "--dense-epochs", str(EPOCHS), "--device", "cpu", "--workers", "0", "--out", str(out),
    ]  # fmt: skip
    code, _ = run_superclip(command, output, True, is_to_stop)
    if code != 0:
        raise InputError(f"{shlex.join(['superclip', *command])} failed: {last_line(output)}; see {output}")
    output.unlink()
    model = f"{weights.resolve().parent.parent.name}/{weights.stem}"
    records = [read_json(file) for file in sorted(out.glob("*.json"))]
    found = {
        record["task"]: record["metrics"]
        for record in records
        if record.get("model") == model and record["task"] in DENSE
    }
    return {name: 100 * found[task][metric] for task, (name, metric) in DENSE.items()}
