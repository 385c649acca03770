"""The scores that exist of a run or a model, and how it was trained and evaluated."""

import math
import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from scipy.stats import binomtest

from ..checkpoints.best_epoch import validation_scores
from ..checkpoints.trainer_files import read_options
from ..plans.run import Run
from ..runs.folder import FINISHED, current_state
from .result_files import read_results, run_of, source_of

# the first part of a recipe's keys under `paper`, by CLIP_benchmark's data set
PAPER_KEYS = {
    "imagenet1k": "imagenet",
    "imagenetv2": "imagenet_v2",
    "mscoco_captions": "coco",
    "flickr30k": "flickr30k",
}
ENDS = {  # of keys, by CLIP_benchmark's measure
    "acc1": "zero_shot",
    "mean_average_precision": "zero_shot_map",
    "lp_acc1": "linear_probe",
    "image_retrieval_recall@1": "text_to_image_r1",
    "text_retrieval_recall@1": "image_to_text_r1",
}


class Score(NamedTuple):
    """A score in percent, with the 95 % interval over the test samples if it is the fraction of
    those that are right."""

    value: float
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        text = f"{self.value:.1f}"
        return f"{text} [{self.interval[0]:.1f}, {self.interval[1]:.1f}]" if self.interval else text


@dataclass
class ModelScores:
    """The scores of a run, of one of its checkpoints, of another model or of the paper."""

    name: str
    scores: dict[str, Score] = field(default_factory=dict)  # by the paper's key if it has one
    epoch: int | None = None
    results: list[dict] = field(default_factory=list)  # of CLIP_benchmark
    training: dict[str, object] = field(default_factory=dict)  # model, data and samples, if known
    problems: list[str] = field(default_factory=list)  # what is missing
    run: Run | None = None  # of `superclip run`


def find_scores(argument: str, out: Path) -> ModelScores:
    """Returns the scores of a run (of its last epoch with results), a file, a folder or a released
    model. Results are in RUN/evaluation and in `out`."""
    path = Path(argument)
    run = run_of(path)
    is_run = run == path
    found = ModelScores(argument)
    folders = [out.resolve()]
    if run:
        name = run.resolve().name
        found.name = name if is_run else f"{name}/{path.stem}"
        folders.append((run / "evaluation").resolve())
    for folder in dict.fromkeys(folders):
        found.results += _of_run(run, folder) if is_run else _of_model(argument, folder)
    found.epoch = max((result.get("epoch") or 0 for result in found.results), default=0) or None
    if is_run:
        found.results = [result for result in found.results if result["epoch"] == found.epoch]
    found.scores = _of_results(found.results)
    if run:
        _add_run(found, run, is_run=is_run)
    if not found.scores:
        found.problems.append(
            "no results; --data DIR evaluates it"
            if path.exists() or ":" in argument
            else "there is no such run, file or folder"
        )
    return found


def _of_run(run: Path, folder: Path) -> list[dict]:
    """Returns the results in a folder that are of the checkpoints of a run's epochs."""
    checkpoints_of_run = os.path.relpath((run / "checkpoints").resolve(), folder)
    results = read_results(folder, lambda source: os.path.dirname(source) == checkpoints_of_run)
    return [result for result in results if result.get("epoch")]


def _of_model(argument: str, folder: Path) -> list[dict]:
    """Returns the results in a folder that are of a file, a folder or a released model."""
    own = source_of(argument, folder)
    return read_results(folder, lambda source: source == own)


def _add_run(found: ModelScores, run: Path, *, is_run: bool) -> None:
    """Adds what the run records itself: scores, settings and what it has not finished."""
    options = read_options(run)
    found.run = Run.find(run)
    found.training = _trained_on(options, found.run)
    if found.epoch or is_run:
        for name, value in validation_scores(run, found.epoch).items():
            if _is_number(value):
                found.scores[f"{name} (training's own)"] = Score(value)
    if not is_run:
        return
    state = current_state(run)
    if state.get("state", FINISHED) != FINISHED:
        reason = f" ({state['error']})" if state.get("error") else ""
        found.problems.append(f"the run is {state['state']}{reason}")
    epochs = found.run.num_slices if found.run else options.get("epochs")
    if found.epoch and epochs and found.epoch < epochs:
        found.problems.append(f"its scores are those of epoch {found.epoch} of {epochs}")


def _trained_on(options: dict, planned: Run | None) -> dict[str, object]:
    """Returns the model, the data and the number of samples of a run: those of its recipe, or of
    the options in params.txt."""
    if planned:
        recipe = planned.recipe
        return {"model": recipe.model, "data": recipe.data, "samples": recipe.samples}
    if not options.get("train_data"):  # it was only evaluated
        return {}
    epochs = options.get("epochs") or 0
    samples = options.get("train_num_samples")  # a table has none
    return {
        "model": options.get("model"),
        "data": options.get("train_data"),
        "samples": samples * epochs if samples else f"{epochs} passes",
    }


def _of_results(results: list[dict]) -> dict[str, Score]:
    """Returns the scores in the results of one checkpoint."""
    scores = {}
    for record in results:
        name = str(record.get("dataset"))
        counts = record.get("num_outcomes") or {}
        for measure, end in ENDS.items():
            value = record["metrics"].get(measure)
            if not _is_number(value):
                continue
            key = f"{name} {end.replace('_', ' ')}"
            if name in PAPER_KEYS:
                key = f"{PAPER_KEYS[name]}_{end}"
            scores[key] = Score(100 * value, _interval(value, counts.get(measure)))
    for side in ("text_to_image_r1", "image_to_text_r1"):
        pair = [scores.get(f"{name}_{side}") for name in ("coco", "flickr30k")]
        if None not in pair:
            scores[f"{side}_average"] = Score(statistics.mean(score.value for score in pair))
    return scores


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _interval(fraction: float, number: int | None) -> tuple[float, float] | None:
    """Returns Wilson's 95 % interval of a fraction of independent samples, in percent."""
    if not number:
        return None
    limits = binomtest(round(fraction * number), number).proportion_ci(method="wilson")
    return 100 * limits.low, 100 * limits.high


def paper_scores(found: list[ModelScores]) -> list[ModelScores]:
    """Returns the paper's scores of the recipes of runs, in percent unless their name says so."""
    by_name = {}
    for model in found:
        paper = model.run and model.run.recipe.paper
        if paper:
            name = f"the paper, {model.run.recipe.name}"
            scores = {key: Score(value) for key, value in paper["values"].items()}
            read_off = ", read off ±0.05" if paper["read_off"] else ""
            source = f"{paper['source']}{read_off}"
            by_name[name] = ModelScores(name, scores, problems=[f"from {source}"])
    return list(by_name.values())


def differences(first: ModelScores, other: ModelScores) -> str:
    """Returns in one line what makes the scores of two models incomparable, "" for nothing: another
    model, other training data or samples, or another evaluation."""
    parts = [
        f"{name} {other.training[name]}, not {value}"
        for name, value in first.training.items()
        if other.training.get(name, value) != value
    ]
    evaluated = {(record["dataset"], record["task"]): record for record in first.results}
    for record in other.results:
        same = evaluated.get((record["dataset"], record["task"]), record)
        if any(record.get(name) != same.get(name) for name in ("settings", "data_files")):
            parts.append(f"{record['dataset']} ({record['task']}) with other data or settings")
    return f"{other.name} is not comparable with {first.name}: {'; '.join(parts)}" if parts else ""
