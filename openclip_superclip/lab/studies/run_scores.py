"""The scores of a run, in percent, under the paper's keys if it has one, and scores over several
seeds."""

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ...checkpoints.validation import validation_rows
from ...files import read_json
from ..evaluation.suites import averaged

PAPER_DATASETS = {
    "imagenet1k": "imagenet",
    "imagenetv2": "imagenet_v2",
    "mscoco_captions": "coco",
    "flickr30k": "flickr30k",
}
RETRIEVAL = {
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
TRAINING_MEASURE = re.compile(r"(image_to_text_R@1|text_to_image_R@1|imagenet.*-top1)$")


def read_scores(run: Path) -> tuple[dict[str, float], int | None]:
    """Returns CLIP_benchmark's scores in RUN/evaluation, in percent (except RMSE), and their epoch,
    the last one there.

    Damaged files are left out.
    """
    by_epoch = defaultdict(list)
    for file in sorted((run / "evaluation").glob("*.json")):
        record = read_json(file, default={})
        metrics, epoch, source = record.get("metrics"), record.get("epoch", 0), record.get("source")
        place, folder = file.parent / str(source), (run / "checkpoints").resolve()
        is_own = source is None or folder in (place.parent.resolve(), place.resolve().parent)
        if is_own and isinstance(metrics, dict) and epoch is not None:  # as of averaged weights
            by_epoch[epoch].append(record)
    epoch = max(by_epoch, default=None)
    return _of_records(by_epoch.get(epoch, [])), epoch or None


def of_training(run: Path) -> dict[str, float]:
    """Returns what the training itself measured at its last epoch (--val-data, --imagenet-val),
    in percent."""
    rows = [{}, *validation_rows(run)]
    last = rows[-1].get("epoch")  # of the last line, unless that was cut
    measured = {
        name: value for row in rows if row.get("epoch") == last for name, value in row.items()
    }
    return {
        f"{name} (training's own)": 100 * v
        for name, v in measured.items()
        if TRAINING_MEASURE.match(name)
    }


def format_score(key: str, value: float, sign: str = "") -> str:
    """Returns a score, or with the sign "+" a difference, as text: percents to a tenth."""
    return f"{value:{sign}.{3 if key.endswith('_rmse') else 1}f}"


def in_order(keys: list[str]) -> list[str]:
    """Returns the paper's scores first, in its order, then the others: zero-shot, retrieval,
    probe, the rest."""

    def place(key: str) -> int:
        return next(
            (
                place
                for place, word in enumerate(("zero", "→", "_to_", " to ", "probe"))
                if word in key
            ),
            5,
        )

    known = [key for key in LABELS if key in keys]
    return known + sorted((key for key in dict.fromkeys(keys) if key not in LABELS), key=place)


def _of_records(records: list[dict]) -> dict[str, float]:
    """Returns the scores in the results of one checkpoint."""
    scores = {key: 100 * value for record in records for key, value in _of_record(record)}
    for side in RETRIEVAL.values():
        pair = [scores.get(f"{name}_{side}") for name in ("coco", "flickr30k")]
        if None not in pair:
            scores[f"{side}_average"] = statistics.mean(pair)
    for parts in averaged([records]).get("average of 38", []):
        scores["average_of_38"] = 100 * statistics.mean(
            part["metrics"][measure] for part, measure in parts
        )
    return scores


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
    # The paper fine-tunes the tower, which is another measure.
    names |= {"miou": f"{dataset}, frozen: mIoU", "rmse": f"{dataset}, frozen: RMSE in cm"}
    for measure, name in names.items():
        value = metrics.get(measure)
        if isinstance(value, int | float) and not (task == "linear_probe" and measure == "acc1"):
            yield name, value


class Spread(NamedTuple):
    """A score of runs that differ by the seed alone: never the best of them."""

    values: list[float]

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def std(self) -> float | None:
        """The standard deviation, None of one value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + (f" ± {self.std:.1f}" if self.std is not None else "")


class PairedDifference(Spread):
    """The differences of two methods' scores, one for each seed that both were trained with."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the mean (Student's t over the seeds); None of one
        seed."""
        if self.std is None:
            return None
        from scipy.stats import t

        half = t.ppf(0.975, len(self.values) - 1) * self.std / math.sqrt(len(self.values))
        return self.mean - half, self.mean + half

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero; a single seed shows nothing."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)

    def record(self) -> dict:
        return {"mean": self.mean, "interval": self.interval, "values": self.values}

    def __str__(self) -> str:
        interval = f" [{self.interval[0]:+.1f}, {self.interval[1]:+.1f}]" if self.interval else ""
        return f"{self.mean:+.1f}{interval}"
