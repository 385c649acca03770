"""What a run's frozen patch tokens tell of every pixel of the demo's scenes, by `superclip evaluate` itself."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

from torch import nn

from ..checkpoints.checkpoint import read_checkpoint
from ..errors import InputError
from ..runs.process import run_superclip
from ..words.tagger import open_checkpoint


def open_trained(weights: Path, model: str) -> tuple[nn.Module, Callable, Callable]:
    """Returns (model, preprocess, tokenizer) of a checkpoint; `model` is the run's --model."""
    opened = open_checkpoint(read_checkpoint(weights), model)
    return opened.model, opened.preprocess(), opened.tokenizer


DENSE_SCENES = "dense"  # below the demo's folder


EPOCHS = 2  # of the linear map: CLIP's mIoU is better than at 10, where the map has learned its scenes by heart


RESULTS = {"segmentation": ("mIoU", "miou"), "depth": ("depth_RMSE", "rmse")}  # the study's name, the result's


def measure_dense(weights: Path, scenes: Path, is_to_stop: Callable[[], bool]) -> dict[str, float]:
    """Returns the mean IoU of the scenes' classes in percent, and the RMSE of their depths in centimetres.

    The results lie in RUN/evaluation, as if `superclip evaluate` had been called by hand.

    Args:
        weights: RUN/checkpoints/epoch_N.pt.
        scenes: the folder that `write_dense_scenes` has filled.
    """
    out = weights.parent.parent / "evaluation"
    printed = out.with_name("evaluation.output")
    command = [
        "evaluate", str(weights), "--data", str(scenes), "--suite", "dense", "--datasets", "demo_masks", "demo_depth",
        "--dense-epochs", str(EPOCHS), "--device", "cpu", "--workers", "0", "--out", str(out),
    ]  # fmt: skip
    code, _ = run_superclip(command, printed, True, is_to_stop)
    if code != 0:
        said = [line for line in printed.read_text(errors="replace").splitlines() if line.strip()]
        raise InputError(f"{shlex.join(['superclip', *command])} failed: {' '.join(said[-1:])}; {printed} holds more")
    printed.unlink()
    return _scores(out, weights)


def _scores(out: Path, weights: Path) -> dict[str, float]:
    model = f"{weights.resolve().parent.parent.name}/{weights.stem}"
    records = [json.loads(file.read_text()) for file in sorted(out.glob("*.json"))]
    found = {
        record["task"]: record["metrics"]
        for record in records
        if record.get("model") == model and record["task"] in RESULTS and not record["settings"]["finetune"]
    }
    return {name: 100 * found[task][metric] for task, (name, metric) in RESULTS.items()}
