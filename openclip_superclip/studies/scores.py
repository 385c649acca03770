"""What was measured of a run, in percent, under the paper's keys where it has one."""

import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..checkpoints.run_outputs import read_run_record
from ..evaluation.results import averages
from ..files import content_digest, file_identity

PAPER_DATASETS = {
    "imagenet1k": "imagenet", "imagenetv2": "imagenet_v2", "mscoco_captions": "coco", "flickr30k": "flickr30k",
}  # fmt: skip


PAPER_DENSE = {"pascal_voc": "pascal_miou", "ade20k": "ade20k_miou", "nyuv2": "nyuv2_rmse"}


RETRIEVAL = {"image_retrieval_recall@1": "text_to_image_r1", "text_retrieval_recall@1": "image_to_text_r1"}


LABELS = {
    "imagenet_zero_shot": "ImageNet-1k zero-shot", "imagenet_linear_probe": "ImageNet-1k linear probe",
    "imagenet_v2_zero_shot": "ImageNet-v2 zero-shot", "coco_text_to_image_r1": "COCO text→image R@1",
    "flickr30k_text_to_image_r1": "Flickr30k text→image R@1", "coco_image_to_text_r1": "COCO image→text R@1",
    "flickr30k_image_to_text_r1": "Flickr30k image→text R@1",
    "text_to_image_r1_average": "text→image R@1, mean of COCO and Flickr30k",
    "image_to_text_r1_average": "image→text R@1, mean of COCO and Flickr30k", "average_of_38": "average of 38",
    "pascal_miou": "PASCAL mIoU", "ade20k_miou": "ADE20k mIoU", "nyuv2_rmse": "NYUv2 RMSE (no %, lower is better)",
    "llava_vqav2": "LLaVA VQAv2", "llava_gqa": "LLaVA GQA", "llava_vizwiz": "LLaVA VizWiz",
    "llava_textvqa": "LLaVA TextVQA", "llava_sqa": "LLaVA SQA", "llava_mmbench": "LLaVA MMBench",
    "llava_mme": "LLaVA MME (points)", "llava_pope": "LLaVA POPE",
}  # fmt: skip


DEMO = "demo-test.json"  # of superclip demo and the studies that measure as it does


WRONG = (ValueError, KeyError, TypeError, AttributeError)  # what reading a damaged result ends with


OF_TRAINING = re.compile(r"(image_to_text_R@1|text_to_image_R@1|imagenet.*-top1)$")


class RunScores(NamedTuple):
    """A run's scores, and of what they are.

    Attributes:
        values: in percent, but for RMSE.
        epoch: None where nothing was evaluated.
        versions: that measured them.
        weights: what tells the evaluated weights from others, None where the results do not say it.
        notes: which results are left out, as of checkpoints that were replaced since, or as damaged.
        course: CLIP_benchmark's values of every epoch that was evaluated.
    """

    values: dict[str, float]
    epoch: int | None
    versions: dict[str, str]
    weights: str | None
    notes: list[str]
    course: dict[int, dict[str, float]]


def read_scores(run: Path, epochs: int | None = None) -> RunScores:
    """Returns what was measured of a run.

    The values are CLIP_benchmark's in RUN/evaluation, of the last epoch that is there; what the training itself
    measured at its last epoch (--val-data, --imagenet-val); and the demo's own.

    Args:
        epochs: of the whole run, whose last checkpoint the demo measures; None where nothing tells.
    """
    damaged = [str(file.relative_to(run)) for file in _results(run) if _is_damaged(file)]
    found = list(_records(run / "evaluation"))
    replaced = {file: _checkpoint(run, record) for file, record in found if _is_replaced(run, file, record)}
    records = [record for file, record in found if file not in replaced]
    evaluated = {record["epoch"] for record in records if isinstance(record.get("epoch"), int)}
    epoch = max(evaluated, default=None)
    by_epoch = {point: [r for r in records if r.get("epoch") == point] for point in [*sorted(evaluated), epoch]}
    course = {point: _of_records(some) for point, some in by_epoch.items() if point is not None}
    records = by_epoch[epoch]
    demo, of_another = _of_demo(run, epochs)
    scores = _of_records(records) | of_training(run) | demo
    names = sorted({checkpoint.name for checkpoint in replaced.values()})
    notes = [f"{name} was replaced after it was evaluated: evaluate it again" for name in names]
    if of_another:
        notes.append(f"{of_another} was replaced after {DEMO} was measured: the same superclip study measures it again")
    if damaged:
        notes.append(f"damaged and left out: {', '.join(damaged)}; remove and measure again")
    versions, weights = ([record[name] for record in records if record.get(name)] for name in ("versions", "weights"))
    return RunScores(
        scores, epoch, versions[0] if versions else {}, str(weights[0]) if weights else None, notes, course
    )


def _of_records(records: list[dict]) -> dict[str, float]:
    """Returns the scores of one checkpoint's results."""
    scores = {key: 100 * value for record in records for key, value in _of_record(record)}
    for side in RETRIEVAL.values():
        pair = [scores.get(f"{name}_{side}") for name in ("coco", "flickr30k")]
        if None not in pair:
            scores[f"{side}_average"] = statistics.mean(pair)
    average = averages([records]).get("average of 38")
    return scores | ({"average_of_38": 100 * average[0]} if average is not None else {})


def shown(key: str, value: float, sign: str = "") -> str:
    """Returns a score, or with the sign "+" a difference, as people read it: percents to a tenth."""
    return f"{value:{sign}.{3 if key.endswith('_rmse') else 1}f}"


def label(key: str) -> str:
    """Returns a score's name for people."""
    return LABELS.get(key) or key


def in_order(keys: list[str]) -> list[str]:
    """Returns the paper's scores first, in its order, then the others: zero-shot, retrieval, probe, the rest."""

    def place(key: str) -> int:
        return next((place for place, word in enumerate(("zero", "→", "_to_", " to ", "probe")) if word in key), 5)

    known = [key for key in LABELS if key in keys]
    return known + sorted((key for key in dict.fromkeys(keys) if key not in LABELS), key=place)


def _results(run: Path) -> list[Path]:
    """Returns the files that hold what was measured of a run."""
    files = [run / DEMO, *sorted((run / "evaluation").glob("*.json")), run / "checkpoints" / "results.jsonl"]
    return [file for file in files if file.is_file()]


def _is_damaged(file: Path) -> bool:
    try:
        if file.name == DEMO:
            _demo_measures(file)
        for text in [file.read_text()] if file.suffix == ".json" else filter(str.strip, file.read_text().splitlines()):
            json.loads(text)
    except (OSError, *WRONG):
        return True
    return False


def _records(folder: Path) -> Iterator[tuple[Path, dict]]:
    for file in sorted(folder.glob("*.json")):
        try:
            record = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and isinstance(record.get("metrics"), dict):
            yield file, record


def _checkpoint(run: Path, record: dict) -> Path:
    name = Path(str(record.get("checkpoint"))).name if record.get("checkpoint") else f"epoch_{record.get('epoch')}.pt"
    return run / "checkpoints" / name


def _is_replaced(run: Path, file: Path, record: dict) -> bool:
    """Returns whether a checkpoint is another than a result is of: by what the result says, or else by their times."""
    checkpoint = _checkpoint(run, record)
    if not checkpoint.is_file():  # deleted: what it scored still stands for the run
        return False
    if record.get("checkpoint_file"):
        return file_identity(checkpoint) != record["checkpoint_file"]
    return checkpoint.stat().st_mtime_ns > file.stat().st_mtime_ns


def _of_record(record: dict) -> Iterator[tuple[str, float]]:
    """Yields the measures of one of CLIP_benchmark's results that tables show."""
    dataset, task, metrics = str(record.get("dataset")), record.get("task"), record["metrics"]
    paper = PAPER_DATASETS.get(dataset)
    names = {
        "acc1": f"{paper}_zero_shot" if paper else f"{dataset} zero-shot",
        "mean_average_precision": f"{dataset} zero-shot mAP",
        "lp_acc1": f"{paper}_linear_probe" if paper else f"{dataset} linear probe",
    }
    for measure, side in RETRIEVAL.items():
        arrow = side.removesuffix("_r1").replace("_to_", "→")
        names[measure] = f"{paper}_{side}" if paper else f"{dataset} {arrow} R@1"
    if (record.get("settings") or {}).get("finetune"):  # as the paper tunes the tower; frozen is another measure
        names |= dict.fromkeys(("miou", "rmse"), PAPER_DENSE.get(dataset, f"{dataset}, tower tuned"))
    else:
        names |= dict.fromkeys(("miou", "rmse"), f"{dataset}, frozen")
    for measure, name in names.items():
        value = metrics.get(measure)
        if isinstance(value, int | float) and not (task == "linear_probe" and measure == "acc1"):
            if measure == "rmse":
                name, value = (name, value / 100) if name.endswith("_rmse") else (f"{name}: RMSE in cm", value)
            yield f"{name}: mIoU" if measure == "miou" and name not in LABELS else name, value


def of_training(run: Path) -> dict[str, float]:
    """Returns what the training itself measured at its last epoch (--val-data, --imagenet-val), in percent."""
    file = run / "checkpoints" / "results.jsonl"
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
        last = max(row["epoch"] for row in rows)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    measures = read_run_record(file.with_name(f"epoch_{last}.pt"), last).measures
    return {f"{name} (training's own)": 100 * v for name, v in measures.items() if OF_TRAINING.match(name)}


def _of_demo(run: Path, epochs: int | None) -> tuple[dict[str, float], str | None]:
    """Returns the demo's scores, or the name of a checkpoint that is no longer the one that it measured."""
    try:
        digest, measures = _demo_measures(run / DEMO)
    except (OSError, *WRONG):
        return {}, None
    there = sorted((run / "checkpoints").glob(f"epoch_{epochs or '*'}.pt"))
    if there and digest not in (content_digest(checkpoint)[:16] for checkpoint in there):
        return {}, there[-1].name
    return {f"demo {name.replace('_', ' ')}": value for name, value in measures.items()}, None


def _demo_measures(file: Path) -> tuple[str, dict[str, float]]:
    """Returns the first 16 digits of the digest of the checkpoint that the demo measured, and what it measured."""
    found = json.loads(file.read_text())
    return str(found["checkpoint"]), {name: float(value) for name, value in found["measures"].items()}
