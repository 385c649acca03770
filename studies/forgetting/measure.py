"""What fine-tuning forgets: the demo's CLIP, fine-tuned on another designer's drawings, measured on
both.

`python docs/forgetting/measure.py RUNS WORK` starts from the runs of `superclip demo` in the folder
RUNS (demo/runs), trains in the folder WORK, resumes where it stopped, writes WORK/forgetting.csv
(one row per seed, fine-tuning method and α), and prints its table.
"""

import argparse
import contextlib
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from openclip_superclip import create_model_and_transforms
from openclip_superclip.__main__ import main as superclip
from openclip_superclip.demo.data import write_model
from openclip_superclip.demo.scene_measures import (
    fraction_found,
    name_classifier,
    object_labels,
)
from openclip_superclip.demo.scenes import DESIGNERS, UNSEEN_DESIGNERS, scenes
from openclip_superclip.files import write_text
from openclip_superclip.rendering import markdown_table
from openclip_superclip.reports.paired_differences import PairedDifference, Spread
from openclip_superclip.study.measure_run import open_trained

NUM_NEW, NUM_OLD, NUM_TEST = 1024, 1024, 500
PASSES, BATCH = 3, 32  # over the new drawings
ALPHAS = (0.25, 0.5, 0.75, 1.0)
COMMON = [
    "--dataset-type",
    "csv",
    "--epochs",
    str(PASSES),
    "--save-frequency",
    str(PASSES),
    "--batch-size",
    str(BATCH),
    "--warmup",
    "32",
    "--workers",
    "0",
    "--device",
    "cpu",
    "--precision",
    "fp32",
    "--beta1",
    "0.9",
    "--beta2",
    "0.98",
    "--eps",
    "1e-6",
    "--wd",
    "0.2",
]
LOCK_TEXT = ["--lock-text", "--lock-text-freeze-layer-norm"]
OLD, NEW, BEFORE = "zero-shot old %", "zero-shot new %", "nothing: before"
WITH_OLD = "old drawings among the new"
PLAIN = "contrastive, rate 1e-4"
TUNED = {  # name: flags
    PLAIN: ["--lr", "1e-4"],
    f"{PLAIN}, {WITH_OLD}": ["--lr", "1e-4"],
    "class loss added, rate 1e-4": [
        "--lr",
        "1e-4",
        "--superclip",
        "--superclip-head-warmup",
        "1024",
    ],
    f"{PLAIN}, text tower locked": ["--lr", "1e-4", *LOCK_TEXT],
    "contrastive, rate 1e-3": ["--lr", "1e-3"],
}


def write_table(file: Path, parts: list[tuple[tuple[str, ...], int]]) -> Path:
    """Writes scenes by some designers and a table of them, unless they are there."""
    if file.exists():
        return file
    pictures = file.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    rows = ["filepath\ttitle"]
    for designers, number in parts:
        for index, scene in enumerate(scenes(number, seed=1, designers=designers)):
            picture = pictures / f"{designers[0]}-{index}.png"
            scene.image.save(picture)
            rows.append(f"{picture}\t{scene.captions['long']}")
    file.write_text("\n".join(rows) + "\n")
    return file


def tune(work: Path, name: str, table: Path, model: str, *flags: str) -> Path:
    """Returns the last checkpoint of a run, which is trained unless it is there."""
    run = "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in name)
    weights = work / "logs" / run / "checkpoints" / f"epoch_{PASSES}.pt"
    if not weights.exists():
        command = [
            sys.executable,
            "-m",
            "openclip_superclip",
            "train",
            "--model",
            model,
            "--train-data",
            str(table),
        ]
        command += [*COMMON, *flags, "--logs", str(work / "logs"), "--name", run]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(
            command,
            check=True,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    return weights


class ZeroShot:
    """New scenes of one object, by the designers of the training and by the other one."""

    def __init__(self, model: str):
        self.model, self.sets = model, []
        _, _, preprocess = create_model_and_transforms(model)
        for designers in (DESIGNERS, UNSEEN_DESIGNERS):
            shown = list(scenes(NUM_TEST, 0, "test", num_objects=(1,), designers=designers))
            self.sets.append(
                (torch.stack([preprocess(scene.image) for scene in shown]), object_labels(shown))
            )

    def __call__(self, weights: Path) -> list[float]:
        """Returns zero-shot accuracy (of 100 names) on old drawings and on new ones, in percent."""
        network, _, tokenizer = open_trained(weights, self.model)
        with torch.inference_mode():
            classifier = name_classifier(network, tokenizer)
            return [
                fraction_found(network.encode_image(pictures, normalize=True) @ classifier, labels)
                for pictures, labels in self.sets
            ]


def main(runs: Path, work: Path, seeds: list[int]) -> None:
    torch.set_num_threads(1)
    model = write_model(work / "model")
    # beside local-dir: OpenCLIP passes over --pretrained
    trained = str(work / "model" / "open_clip_config.json")
    new = write_table(work / "new.csv", [(UNSEEN_DESIGNERS, NUM_NEW)])
    mixed = write_table(work / "mixed.csv", [(UNSEEN_DESIGNERS, NUM_NEW), (DESIGNERS, NUM_OLD)])
    zero_shot, found = ZeroShot(model), {}
    kept = {seed: work / f"measured-{seed}.json" for seed in seeds}
    for seed, file in kept.items():
        found[seed] = json.loads(file.read_text()) if file.exists() else {}

    def measure(name: str, seed: int, alpha: float, weights: Path) -> None:
        found[seed][f"{name}|{alpha:g}"] = zero_shot(weights)
        write_text(kept[seed], json.dumps(found[seed]))

    for seed, (name, flags) in tqdm(
        [(seed, one) for seed in seeds for one in TUNED.items()], unit=" runs"
    ):
        base = runs / f"clip_seed{seed}" / "checkpoints" / "epoch_20.pt"
        if f"{BEFORE}|0" not in found[seed]:
            measure(BEFORE, seed, 0, base)
        start = ["--pretrained", str(base), "--seed", str(seed)]
        tuned = tune(
            work, f"{name}_seed{seed}", mixed if WITH_OLD in name else new, trained, *start, *flags
        )
        for alpha in ALPHAS:
            if f"{name}|{alpha:g}" in found[seed]:
                continue
            between = work / f"between-{seed}.pt"
            mixed_by = ["--alpha", str(alpha), "--out", str(between), "--overwrite"]
            with contextlib.redirect_stdout(sys.stderr):
                if superclip(["interpolate", str(base), str(tuned), *mixed_by]):
                    sys.exit(1)
            measure(name, seed, alpha, between)
    with open(work / "forgetting.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["tuned with", "seed", "alpha", OLD, NEW])
        for seed, scores in found.items():
            for key, values in scores.items():
                name, alpha = key.split("|")
                writer.writerow([name, seed, alpha, *(f"{value:.1f}" for value in values)])
    print(table(work / "forgetting.csv"))


def table(file: Path) -> str:
    """Returns a CSV's means over the seeds in Markdown, and differences from plain tuning,
    paired by seed."""
    scores = {
        (row["tuned with"], float(row["alpha"]), int(row["seed"])): (
            float(row[OLD]),
            float(row[NEW]),
        )
        for row in csv.DictReader(file.read_text().splitlines())
    }
    seeds = sorted({seed for *_, seed in scores})

    def of(name: str, alpha: float) -> list[tuple[float, ...]]:
        return list(zip(*(scores[name, alpha, seed] for seed in seeds), strict=True))

    rows = [[BEFORE, "", "", *(str(Spread(list(side))) for side in of(BEFORE, 0)), "", ""]]
    for name in TUNED:
        half, whole = of(name, 0.5), of(name, 1)
        ahead = [
            PairedDifference([ours - theirs for ours, theirs in zip(*sides, strict=True)])
            for sides in zip(whole, of(PLAIN, 1), strict=True)
        ]
        difference_cells = ["", ""] if name == PLAIN else map(str, ahead)
        rows.append(
            [name, *(str(Spread(list(side))) for side in (*half, *whole)), *difference_cells]
        )
    heads = [
        "tuned with",
        "old, α = 0.5",
        "new, α = 0.5",
        "old",
        "new",
        "old: more than the first",
        "new: more",
    ]
    return markdown_table(heads, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, metavar="RUNS")
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    options = parser.parse_args()
    main(options.runs, options.work, options.seeds)
