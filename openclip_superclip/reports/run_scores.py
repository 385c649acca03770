"""The scores of a run, in percent, under the paper's keys if it has one."""

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from ..checkpoints.best_epoch import validation_rows
from ..evaluation.suites import averaged
from ..files import file_identity, json_or_empty

# the first part of a recipe's keys under `paper`, by CLIP_benchmark's data set
PAPER_KEYS = {
    "imagenet1k": "imagenet",
    "imagenetv2": "imagenet_v2",
    "mscoco_captions": "coco",
    "flickr30k": "flickr30k",
}
RECALLS = {
    "image_retrieval_recall@1": "text_to_image_r1",
    "text_retrieval_recall@1": "image_to_text_r1",
}
LABELS = {  # for readers
    "imagenet_zero_shot": "ImageNet-1k zero-shot",
    "imagenet_linear_probe": "ImageNet-1k linear probe",
    "imagenet_v2_zero_shot": "ImageNet-v2 zero-shot",
    "coco_text_to_image_r1": "COCO text→image R@1",
    "flickr30k_text_to_image_r1": "Flickr30k text→image R@1",
    "coco_image_to_text_r1": "COCO image→text R@1",
    "flickr30k_image_to_text_r1": "Flickr30k image→text R@1",
    "text_to_image_r1_average": "text→image R@1, mean of COCO and Flickr30k",
    "image_to_text_r1_average": "image→text R@1, mean of COCO and Flickr30k",
    "average_of_38": "average of 38",
    "pascal_miou": "PASCAL mIoU",
    "ade20k_miou": "ADE20k mIoU",
    "nyuv2_rmse": "NYUv2 RMSE (no %, lower is better)",
    "llava_vqav2": "LLaVA VQAv2",
    "llava_gqa": "LLaVA GQA",
    "llava_vizwiz": "LLaVA VizWiz",
    "llava_textvqa": "LLaVA TextVQA",
    "llava_sqa": "LLaVA SQA",
    "llava_mmbench": "LLaVA MMBench",
    "llava_mme": "LLaVA MME (points)",
    "llava_pope": "LLaVA POPE",
}
SETTINGS = ("settings", "data_files", "versions")  # of an evaluation, on which its score depends
TRAINING_MEASURE = re.compile(r"(image_to_text_R@1|text_to_image_R@1|imagenet.*-top1)$")


def read_scores(run: Path) -> tuple[dict[str, float], int | None, dict[str, dict]]:
    """Returns CLIP_benchmark's scores in RUN/evaluation, in percent (except RMSE), their epoch,
    the last one there, and the settings, data and versions of each evaluation.

    Damaged files, and those of other models or of a checkpoint that was trained again, are left
    out.
    """
    by_epoch = defaultdict(list)
    for file in sorted((run / "evaluation").glob("*.json")):
        record = json_or_empty(file)
        epoch = record.get("epoch", 0)  # None of averaged weights
        if epoch is not None and isinstance(record.get("metrics"), dict) and _is_own(record, file):
            by_epoch[epoch].append(record)
    epoch = max(by_epoch, default=None)
    records = by_epoch[epoch]
    settings = {
        f"{record.get('dataset')} ({record.get('task')})": [record.get(key) for key in SETTINGS]
        for record in records
    }
    return _of_records(records), epoch or None, settings


def _is_own(record: dict, file: Path) -> bool:
    """Returns whether a result in RUN/evaluation is of a model in RUN/checkpoints, and of the file
    that is there now, unless that was removed."""
    source = record.get("source")
    if source is None:
        return True
    weights = file.parent / str(source)
    checkpoints = (file.parent.parent / "checkpoints").resolve()
    if checkpoints not in (weights.parent.resolve(), weights.resolve().parent):
        return False
    evaluated = record.get("source_id")  # None in results of earlier versions
    return evaluated is None or file_identity(weights) in (None, evaluated)


def of_training(run: Path) -> dict[str, float]:
    """Returns what the training itself measured at its last epoch (--val-data, --imagenet-val),
    in percent."""
    rows = validation_rows(run)
    last_epoch = rows[-1].get("epoch") if rows else None  # of the last line, unless that was cut
    return {
        name: 100 * value
        for row in rows
        if row.get("epoch") == last_epoch
        for name, value in row.items()
        if TRAINING_MEASURE.match(name)
    }


def in_order(keys: Iterable[str]) -> list[str]:
    """Returns the paper's scores first, in its order, then the others in theirs."""
    keys = list(dict.fromkeys(keys))
    order = [*LABELS, *keys]
    return sorted(keys, key=order.index)


def _of_records(records: list[dict]) -> dict[str, float]:
    """Returns the scores in the results of one checkpoint."""
    scores = {}
    for record in records:
        scores |= _of_record(record)
    for side in RECALLS.values():
        pair = [scores.get(f"{name}_{side}") for name in ("coco", "flickr30k")]
        if None not in pair:
            scores[f"{side}_average"] = statistics.mean(pair)
    for parts in averaged([records]).get("average of 38", []):
        accuracies = [record["metrics"][measure] for record, measure in parts]
        scores["average_of_38"] = 100 * statistics.mean(accuracies)
    return scores


def _of_record(record: dict) -> dict[str, float]:
    """Returns the measures of one of CLIP_benchmark's results that tables show."""
    dataset = str(record.get("dataset"))
    names = {
        "acc1": f"{dataset} zero-shot",
        "mean_average_precision": f"{dataset} zero-shot mAP",
        "lp_acc1": f"{dataset} linear probe",
        # The paper fine-tunes the tower, which is another measure.
        "miou": f"{dataset}, frozen: mIoU",
        "rmse": f"{dataset}, frozen: RMSE in cm",
        "image_retrieval_recall@1": f"{dataset} text→image R@1",
        "text_retrieval_recall@1": f"{dataset} image→text R@1",
    }
    if dataset in PAPER_KEYS:
        key = PAPER_KEYS[dataset]
        names |= {"acc1": f"{key}_zero_shot", "lp_acc1": f"{key}_linear_probe"}
        names |= {measure: f"{key}_{side}" for measure, side in RECALLS.items()}
    if record.get("task") == "linear_probe":
        del names["acc1"]
    metrics = record["metrics"]
    return {
        name: 100 * metrics[measure]
        for measure, name in names.items()
        if isinstance(metrics.get(measure), int | float)
    }
