"""One run of a study: its recipe and folder, its training by `superclip run`, and its measures."""

import functools
import os
import re
import shlex
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from torch import nn

from ...checkpoints.checkpoint import read_checkpoint
from ...checkpoints.run_outputs import checkpoints
from ...checkpoints.validation import best_epoch
from ...data.tables import is_table
from ...environment import versions
from ...errors import InputError
from ...files import content_digest, read_json, write_json
from ...runs.folder import FINISHED, RunFolder
from ...runs.plan import make_run
from ...runs.process import last_line, run_superclip
from ...runs.recipe import WORDS, Recipe, read_recipe
from ...runs.run import DEFAULTS, Run, Settings
from ...runs.slurm import find_placement
from ..demo import scene_measures as on_scenes
from ..demo.data import SECOND_DRAW
from ..demo.scenes import UNSEEN_DESIGNERS
from ..words.tagger import open_checkpoint
from .run_scores import of_training

PACKAGES = ("openclip-superclip", "open_clip_torch", "torch", "webdataset", "numpy", "pillow")
DENSE_SCENES = "dense"  # below the demo's folder
EPOCHS = 2  # of the linear map: CLIP's mIoU is better than with 10, which overfit the map's scenes
# the study's name, the result's
DENSE = {"demo_masks": ("mIoU", "miou"), "demo_depth": ("depth_RMSE", "rmse")}
UNNAMED = ("method", "seed", *WORDS)  # a run's name has them elsewhere, or not at all


@dataclass(frozen=True)
class StudyRun:
    """What distinguishes one run of a study from another."""

    arm: str
    cell: str | None
    seed: int
    file: str  # the study's recipe
    set: tuple[tuple[str, str], ...]  # fields of the recipe with their values
    folder: Path
    split: str = "test"  # of the scenes that measure it; "tune" for trials

    @functools.cached_property
    def recipe(self) -> Recipe:
        return read_recipe(self.file, dict(self.set))

    def described(
        self, device: str, data: str | None, settings: Settings = DEFAULTS, **machines
    ) -> Run:
        """Returns the run as `make_run` makes it."""
        return make_run(
            self.recipe,
            data=data,
            device=device,
            settings=settings,
            set_=dict(self.set),
            **machines,
        )

    @property
    def state(self) -> dict:
        return RunFolder(self.folder).state()

    @property
    def is_finished(self) -> bool:
        return self.state.get("state") == FINISHED

    @property
    def cpu_seconds(self) -> float | None:
        """The CPU time of its training; None if a job trained it."""
        return read_json(self.folder / "cpu_seconds.json", default={}).get("cpu_seconds")

    def train(
        self, device: str, data: str | None, stop: threading.Event, settings: Settings = DEFAULTS
    ) -> None:
        """Trains it from its last checkpoint, unless it is finished, and adds up its CPU seconds.

        Raises InputError if it fails, with its last message, if `stop` ends it, and if it is
        trained elsewhere.
        """
        if self.is_finished:
            return
        RunFolder(self.folder).check_is_free(find_placement())
        if is_table(data or self.recipe.shards):  # OpenCLIP would resume in another order
            shutil.rmtree(self.folder, ignore_errors=True)
        output = self.folder.with_name(f"{self.folder.name}.output")
        RunFolder(self.folder).write(self.described(device, data, settings))
        before = self.state
        code, seconds = run_superclip(
            ["run", str(self.folder)], output, device == "cpu", stop.is_set
        )
        write_json(
            self.folder / "cpu_seconds.json", {"cpu_seconds": (self.cpu_seconds or 0.0) + seconds}
        )
        if stop.is_set():
            raise InputError(f"{self.folder.name} was stopped")
        if code != 0:
            state = {} if self.state == before else self.state  # of this start
            error = (state.get("refused") or state).get("error") or last_line(output)
            raise InputError(f"{self.folder.name} failed: {' '.join(error.split())}; see {output}")
        output.unlink()


def run_name(
    common: Recipe, recipe: Recipe, is_common: Mapping[str, bool] = MappingProxyType({})
) -> str:
    """Returns the name of a run's folder: its method, the fields that differ from `common`, and its
    seed.

    `is_common` has the fields that a study sets for all runs: whether this run has that value,
    which is left out.
    """
    theirs = flat(common.as_dict())
    ours = {key: None for key in theirs if key.startswith("flags.")} | flat(recipe.as_dict())
    differ = [
        key for key in ours if not is_common.get(key, key in theirs and ours[key] == theirs[key])
    ]
    values = {key: re.sub(r"[^\w.-]|_", "-", str(ours[key])).lower() for key in differ}
    parts = [f"{key.rpartition('.')[2]}-{value}" for key, value in values.items()]
    return "_".join([recipe.method, *parts, f"seed{recipe.seed}"])


def flat(values: dict, prefix: str = "") -> dict:
    """Returns the values with the fields of mappings as KEY.FIELD, as --set takes them."""
    found: dict = {}
    for key, value in values.items():
        if key not in UNNAMED:
            found |= (
                flat(value, f"{prefix}{key}.")
                if isinstance(value, dict)
                else {f"{prefix}{key}": value}
            )
    return found


def open_trained(weights: Path, model: str) -> tuple[nn.Module, Callable, Callable]:
    """Returns (model in evaluation mode, preprocess, tokenizer) of a checkpoint; `model` is the
    run's --model."""
    opened = open_checkpoint(read_checkpoint(weights), model)
    return opened.model, opened.preprocess(), opened.tokenizer


def measured(run: StudyRun, measures: str, scenes: Path, stop: threading.Event) -> dict:
    """Returns the digest of a trained run's weights, its CPU seconds and its measures.

    It is measured now, unless the same versions have measured the same weights. InputError if
    `stop` ends that. `measures` is one of MEASURES, and `scenes` is the folder of the demo's model
    and scenes.
    """
    found = checkpoints(run.folder / "checkpoints")
    last = RunFolder(run.folder).record().get("plan", {}).get("epochs") or max(found, default=None)
    if last not in found:
        raise InputError(
            f"{run.folder} is finished but lacks its last checkpoint: remove it, to train the "
            "run again"
        )
    weights, file = found[last], run.folder / f"{measures}-{run.split}.json"
    record = {
        "run": run.folder.name,
        "checkpoint": content_digest(weights)[:16],
        "cpu_seconds": run.cpu_seconds,
        "versions": versions(*PACKAGES),
    }
    if measures == "validation":
        best = best_epoch(run.folder)
        record |= {"best_epoch": best.epoch if best else None, "epochs": last}
    before = read_json(file, default={})
    if before.get("measures") and all(
        before.get(name) == record[name] for name in ("checkpoint", "versions")
    ):
        return {**record, "measures": before["measures"]}
    record["measures"] = _measure(run, weights, measures, scenes, stop)
    write_json(file, record)
    return record


def _measure(
    run: StudyRun, weights: Path, measures: str, scenes: Path, stop: threading.Event
) -> dict[str, float]:
    if measures == "dense-scenes":
        return measure_dense(weights, scenes / DENSE_SCENES, stop.is_set)
    if measures == "validation":
        return {
            name.removesuffix(" (training's own)"): score
            for name, score in of_training(run.folder).items()
        }
    model = open_trained(weights, read_recipe(str(run.folder / "recipe.yaml")).model)
    if measures == "natural":
        return on_scenes.measure_natural(model, split=run.split, seed=run.seed)
    if measures == "transfer":
        return on_scenes.measure_transfer(model, run.split, run.seed)
    second = SECOND_DRAW.designers
    options = {
        "unseen-drawings": {"designers": UNSEEN_DESIGNERS},
        "second-draw": {"designers": second, "trained_on": second, "seed": SECOND_DRAW.seed},
    }
    return on_scenes.measure(model, split=run.split, **options.get(measures, {}))


def measure_dense(weights: Path, scenes: Path, is_to_stop: Callable[[], bool]) -> dict[str, float]:
    """Returns the mean IoU of the scenes' classes in percent, and the RMSE of their depths in
    centimetres.

    They are of a linear map of the frozen patch tokens. `weights` are RUN/checkpoints/epoch_N.pt;
    the results are in RUN/evaluation, as if `superclip evaluate` had been called by hand.
    `write_dense_scenes` has filled `scenes`.
    """
    out = weights.parent.parent / "evaluation"
    output = out.with_name("evaluation.output")
    command = [
        "evaluate",
        str(weights),
        "--data",
        str(scenes),
        "--suite",
        "dense",
        "--datasets",
        *DENSE,
        "--dense-epochs",
        str(EPOCHS),
        "--device",
        "cpu",
        "--workers",
        "0",
        "--out",
        str(out),
    ]
    code, _ = run_superclip(command, output, True, is_to_stop)
    if code != 0:
        raise InputError(
            f"{shlex.join(['superclip', *command])} failed: {last_line(output)}; see {output}"
        )
    output.unlink()
    source = os.path.relpath(weights.resolve(), out.resolve())
    ours = {"model": f"{out.resolve().parent.name}/{weights.stem}", "source": source}.items()
    found = {
        one["dataset"]: one["metrics"]
        for one in map(read_json, out.glob("*.json"))
        if ours <= one.items()
    }
    return {name: 100 * found[dataset][metric] for dataset, (name, metric) in DENSE.items()}
