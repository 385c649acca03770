"""The scores that exist of a run or a model, and how it was trained and evaluated."""

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from scipy.stats import binomtest

from ..checkpoints.best_epoch import validation_scores
from ..checkpoints.trainer_files import checkpoints, newest, read_options
from ..files import content_digest, json_or_empty
from ..option_table import EFFECTS
from ..plans.run import Run
from ..runs.folder import FINISHED, current_state
from .result_files import is_of, is_of_run, read_results
from .suites import RETRIEVAL, THE_38

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
    "image_retrieval_recall@5": "text_to_image_r5",
    "text_retrieval_recall@5": "image_to_text_r5",
}
TASKS = ("zeroshot_classification", "zeroshot_retrieval", "linear_probe")
ORDER = [*THE_38, *RETRIEVAL]
METHOD = ("superclip", "siglip", "force_patch_dropout")  # options that select what is compared
# that data or samples are another makes scores incomparable; the other settings explain them
DECISIVE = ("model", "data", "samples")


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
    training: dict[str, object] = field(default_factory=dict)  # settings, {} if unknown
    problems: list[str] = field(default_factory=list)  # what is missing
    run: Run | None = None  # of `superclip run`


def find_scores(argument: str, out: Path) -> ModelScores:
    """Returns the scores of a run (of its last epoch with results), a file, a folder or a released
    model. Results are in RUN/evaluation and in `out`."""
    path = Path(argument)
    run = _run_of(path)
    is_run = run == path
    found = ModelScores(argument)
    folders = {out.resolve(): out}
    if run:
        name = run.resolve().name
        found.name = name if is_run else f"{name}/{path.stem}"
        folders[(run / "evaluation").resolve()] = run / "evaluation"
    results = [result for folder in folders.values() for result in read_results(folder)]
    if is_run:
        of_epochs = [result for result in results if is_of_run(result, run) and result.get("epoch")]
        found.epoch = max((result["epoch"] for result in of_epochs), default=None)
        found.results = [result for result in of_epochs if result["epoch"] == found.epoch]
    else:
        found.results = [result for result in results if is_of(result, argument)]
        found.epoch = next((result.get("epoch") for result in found.results), None)
    found.results.sort(key=_table_order)
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


def _run_of(path: Path) -> Path | None:
    """Returns the folder of a run if the path is one, or a checkpoint in it."""
    if any((path / name).exists() for name in ("checkpoints", "params.txt", "run.json")):
        return path
    folder = path.absolute().parent
    return folder.parent if folder.name == "checkpoints" else None


def _add_run(found: ModelScores, run: Path, *, is_run: bool) -> None:
    """Adds what the run records itself: scores, settings and what it has not finished."""
    options = read_options(run)
    found.run = Run.find(run)
    found.training = _settings(options, found.run)
    if found.epoch or is_run:
        for name, value in validation_scores(run, found.epoch).items():
            if _is_number(value):
                found.scores[f"{name} (training's own)"] = Score(value)
    if not is_run:
        return
    weights = checkpoints(run / "checkpoints").get(newest(run / "checkpoints"))
    demo = json_or_empty(run / "demo-test.json")
    # else the checkpoint was trained again since
    if demo and (weights is None or content_digest(weights)[:16] == demo.get("checkpoint")):
        for name, value in demo.get("measures", {}).items():
            if _is_number(value):
                found.scores[f"demo {name.replace('_', ' ')}"] = Score(value)
    state = current_state(run)
    if state.get("state", FINISHED) != FINISHED:
        reason = f" ({state['error']})" if state.get("error") else ""
        found.problems.append(f"the run is {state['state']}{reason}")
    epochs = found.run.num_slices if found.run else options.get("epochs")
    if found.epoch and epochs and found.epoch < epochs:
        found.problems.append(f"its scores are those of epoch {found.epoch} of {epochs}")


def _settings(options: dict, planned: Run | None) -> dict[str, object]:
    """Returns what determines a run's scores, by name: the options in params.txt and, of
    `superclip run`, the recipe's data and samples."""
    settings = {name: value for name, value in options.items() if _is_compared(name, options)}
    if options:
        settings["data"] = options.get("train_data")
        settings["samples"] = (options.get("train_num_samples") or 0) * (options.get("epochs") or 0)
        sizes = (options.get(name) or 1 for name in ("batch_size", "world_size", "accum_freq"))
        settings["batch size"] = math.prod(sizes)
    if planned:
        recipe = planned.recipe
        settings |= {"model": recipe.model, "data": recipe.data, "samples": recipe.samples}
        settings["batch size"] = recipe.global_batch_size
        settings["shards"] = "the recipe's" if planned.data == recipe.shards else planned.data
    return settings


def _is_compared(name: str, options: dict) -> bool:
    effect = EFFECTS.get(name)
    if effect is None or not effect.changes_scores or name in METHOD:
        return False
    if name in ("epochs", "train_num_samples"):  # part of the samples
        return False
    return bool(options.get("superclip")) or not name.startswith("superclip_")


def _table_order(record: dict) -> tuple:
    """Returns what sorts results by task, in the order of the suites' lists, then by name."""
    task = record.get("task")
    dataset = str(record.get("dataset"))
    in_tasks = TASKS.index(task) if task in TASKS else len(TASKS)
    return in_tasks, ORDER.index(dataset) if dataset in ORDER else len(ORDER), dataset


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
    """Returns in one line what makes the scores of two models incomparable, or explains their
    difference; "" for nothing."""
    shared = [name for name in first.training if name in other.training]
    changed = [name for name in shared if first.training[name] != other.training[name]]
    parts = [
        f"{name.replace('_', ' ')} {other.training[name]}, not {first.training[name]}"
        for name in changed
    ]
    evaluated = {(record["dataset"], record["task"]): record for record in first.results}
    for record in other.results:
        same = evaluated.get((record["dataset"], record["task"]))
        facts = {"settings": "settings", "data_files": "data", "versions": "versions"}
        if same:
            names = [text for key, text in facts.items() if record.get(key) != same.get(key)]
            if names:
                parts.append(
                    f"{record['dataset']} ({record['task']}) with other {' and '.join(names)}"
                )
    if not parts:
        return ""
    is_decisive = any(name in DECISIVE for name in changed)
    relation = "is not comparable with" if is_decisive else "differs from"
    return f"{other.name} {relation} {first.name}: {'; '.join(parts)}"
