"""What fine-tuning keeps: a CLIP of the demo's drawings, tuned on drawings of other objects, measured on both.

`python docs/forgetting/measure.py WORK` trains what is not there yet in the folder WORK and prints the rows of
forgetting.csv. 50 of the demo's 100 objects are the old ones and 50 the new ones, in turn by the alphabet.
"""

import contextlib
import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from open_clip import build_zero_shot_classifier, get_tokenizer, load_checkpoint

from openclip_superclip import create_model_and_transforms
from openclip_superclip.__main__ import main as superclip
from openclip_superclip.demo.demo_model import write_model
from openclip_superclip.demo.measures import evaluating, scene_features
from openclip_superclip.demo.scenes import NAMES, Scene, draw_image

OLD, NEW = NAMES[0::2], NAMES[1::2]
NUM_OLD, NUM_NEW, NUM_MIXED, NUM_TEST = 20_480, 1_024, 1_024, 300
ALPHAS = (0.25, 0.5, 0.75, 1.0)
SEEDS = (0,)
COMMON = [
    "--batch-size", "32", "--workers", "0", "--device", "cpu", "--precision", "fp32", "--beta1", "0.9", "--beta2",
    "0.98", "--eps", "1e-6", "--wd", "0.2",
]  # fmt: skip
PASSES = 5  # over the new drawings
TUNED = {  # name: flags
    "lr 1e-3": ["--lr", "1e-3"],
    "lr 1e-4": ["--lr", "1e-4"],
    "lr 1e-4, half old drawings": ["--lr", "1e-4"],
}


def make(names: list[str], seed: int, index: int, num_objects: range) -> Scene:
    rng = np.random.default_rng((seed, index, NAMES.index(names[0])))
    objects = [names[place] for place in rng.choice(len(names), rng.choice(num_objects), replace=False)]
    image, layers = draw_image(rng, objects)
    return Scene(image, objects, {"long": ", ".join(objects)}, layers)


def write_table(file: Path, parts: list[tuple[list[str], int]]) -> Path:
    """Writes scenes and a table of them, unless they are there."""
    if file.exists():
        return file
    pictures = file.with_suffix("")
    pictures.mkdir(parents=True)
    rows = ["filepath\ttitle"]
    for names, number in parts:
        for index in range(number):
            scene = make(names, 0, index, range(1, 5))
            picture = pictures / f"{names[0]}-{index}.png"
            scene.image.save(picture)
            rows.append(f"{picture}\t{scene.captions['long']}")
    file.write_text("\n".join(rows) + "\n")
    return file


def train(work: Path, name: str, table: Path, epochs: int, model: str, *flags: str) -> Path:
    """Returns the last checkpoint of a run, which is trained unless it is there."""
    run = name.replace(" ", "-").replace(",", "").replace("--", "")
    weights = work / "logs" / run / "checkpoints" / f"epoch_{epochs}.pt"
    if not weights.exists():
        where = ["--model", model, "--train-data", str(table), "--dataset-type", "csv", "--epochs", str(epochs)]
        command = [sys.executable, "-m", "openclip_superclip", "train", *where, *COMMON, *flags]
        command += ["--save-frequency", str(epochs), "--logs", str(work / "logs"), "--name", run]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return weights


def zero_shot(weights: Path, model: str, names: list[str]) -> float:
    """Returns the share of one-object scenes whose object is, of these names, the most similar, in percent."""
    loaded, _, preprocess = create_model_and_transforms(model)
    load_checkpoint(loaded, str(weights), strict=False)
    shown = [make(names, 1, index, range(1, 2)) for index in range(NUM_TEST)]
    with evaluating(loaded):
        classifier = build_zero_shot_classifier(loaded, get_tokenizer(model), names, ["{}"], device="cpu").float()
        best = (scene_features(loaded, preprocess, shown, "cpu") @ classifier).argmax(dim=1)
    return 100 * float(np.mean([names[place] == scene.objects[0] for place, scene in zip(best, shown, strict=True)]))


def main(work: Path) -> None:
    torch.set_num_threads(1)
    model = write_model(work / "model")
    old = write_table(work / "old.csv", [(OLD, NUM_OLD)])
    new = write_table(work / "new.csv", [(NEW, NUM_NEW)])
    mixed = write_table(work / "mixed.csv", [(NEW, NUM_NEW), (OLD, NUM_MIXED)])
    base = train(work, "base", old, 2, model, "--lr", "1e-3", "--warmup", "128")
    kept = work / "measured.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for seed in SEEDS:
        for name, flags in TUNED.items():
            table = mixed if "half old" in name else new
            start = ["--pretrained", str(base), "--warmup", "32", "--seed", str(seed)]
            tuned = train(work, f"{name} seed{seed}", table, PASSES, model, *start, *flags)
            for alpha in ALPHAS:
                key = f"{name}|{seed}|{alpha}"
                if key in found:
                    continue
                between = work / "between.pt"
                mixed_by = ["--alpha", str(alpha), "--out", str(between), "--overwrite"]
                with contextlib.redirect_stdout(sys.stderr):
                    superclip(["interpolate", str(base), str(tuned), *mixed_by])
                found[key] = [zero_shot(between, model, OLD), zero_shot(between, model, NEW)]
                kept.write_text(json.dumps(found))
    found["before|0|0"] = [zero_shot(base, model, OLD), zero_shot(base, model, NEW)]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["tuned with", "seed", "alpha", "zero-shot old %", "zero-shot new %"])
    for key, (of_old, of_new) in found.items():
        writer.writerow([*key.split("|"), f"{of_old:.1f}", f"{of_new:.1f}"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
