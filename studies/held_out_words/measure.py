"""Measures the runs of the study held_out_words separately for held-out and kept objects.

`python docs/studies/held_out_words/measure.py RUNS OUT`, in the folder in which the study was
trained, measures each finished run in the folder RUNS and keeps its measures there, in
RUN/held-out-words.json. It writes OUT/study.csv: a row for each run of the seeds whose runs are all
finished.
"""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from held_out_words import held_out_objects
from openclip_superclip.lab.demo.scene_measures import (
    OpenedModel,
    fit_object_probe,
    fraction_found,
    name_classifier,
    object_labels,
    scene_features,
)
from openclip_superclip.lab.demo.scenes import (
    DESIGNERS,
    NAMES,
    UNSEEN_DESIGNERS,
    Scene,
    scenes,
)
from openclip_superclip.lab.studies.measure_run import open_trained

from openclip_superclip.files import content_digest, json_or_empty, write_json
from openclip_superclip.plans.recipe_files import read_recipe
from openclip_superclip.runs.folder import FINISHED, RunFolder

SEEDS = range(100, 108)
ARMS = {  # the names of their runs' folders, without the seed
    "CLIP": "clip",
    "SuperCLIP": "superclip",
    "pooled": "superclip_head_input-pooled",
    "SuperCLIP, half the words": "superclip_held-out-words-50",
    "pooled, half the words": "superclip_held-out-words-50_head_input-pooled",
}
NUM_SCENES, NUM_PROBE_SCENES = 3000, 2000
LAST_EPOCH = 20


@dataclass(frozen=True)
class TestScenes:
    """A seed's one-object test scenes, the training scenes of its linear probe, and whether each
    name is held out, bool [N]."""

    seen: list[Scene]
    unseen: list[Scene]
    probe: list[Scene]
    held_out: torch.Tensor


def scenes_of(seed: int) -> TestScenes:
    options = {"num": NUM_SCENES, "seed": seed, "split": "test", "num_objects": (1,)}
    held_out = held_out_objects(seed)
    return TestScenes(
        seen=list(scenes(**options)),
        unseen=list(scenes(**options, designers=UNSEEN_DESIGNERS)),
        probe=list(scenes(NUM_PROBE_SCENES, seed, designers=DESIGNERS)),
        held_out=torch.tensor([name in held_out for name in NAMES]),
    )


def measured(opened: OpenedModel, test: TestScenes) -> dict[str, float]:
    """Returns the model's accuracies in percent, on scenes of held-out and of kept objects."""
    model, preprocess, tokenizer = opened
    with torch.inference_mode():
        classifier = name_classifier(model, tokenizer)  # [D, N]
        seen, unseen, probe_features = (
            scene_features(model, preprocess, shown)
            for shown in (test.seen, test.unseen, test.probe)
        )  # [S, D]
    probe = fit_object_probe(probe_features, object_labels(test.probe))
    scores = {
        "seen": (seen @ classifier, object_labels(test.seen)),
        "unseen": (unseen @ classifier, object_labels(test.unseen)),
        "seen_probe": (probe(seen), object_labels(test.seen)),
    }
    groups = {"held_out": test.held_out, "kept": ~test.held_out}
    found = {}
    for measure, (similarities, labels) in scores.items():
        for group, names in groups.items():
            is_of_group = labels[:, names].any(dim=1)  # [S]
            accuracy = fraction_found(similarities[is_of_group], labels[is_of_group])
            found[f"{measure}_{group}"] = accuracy
    similarities, labels = (values[:, test.held_out] for values in scores["seen"])
    is_of_group = labels.any(dim=1)
    found["seen_among_held_out"] = fraction_found(similarities[is_of_group], labels[is_of_group])
    return found


def measure_run(folder: Path, test: TestScenes) -> dict:
    """Returns the digest of a finished run's weights and its measures, and keeps them in the run's
    folder."""
    weights = folder / "checkpoints" / f"epoch_{LAST_EPOCH}.pt"
    digest = content_digest(weights)[:16]
    file = folder / "held-out-words.json"
    record = json_or_empty(file)
    if record.get("checkpoint") != digest:
        opened = open_trained(weights, read_recipe(str(folder / "recipe.yaml")).model)
        record = {"checkpoint": digest, "measures": measured(opened, test)}
        write_json(file, record)
    return record


def main(runs: Path, out: Path) -> None:
    torch.set_num_threads(1)
    rows = []
    for seed in SEEDS:
        folders = {arm: runs / f"{name}_seed{seed}" for arm, name in ARMS.items()}
        finished = {
            arm: folder
            for arm, folder in folders.items()
            if RunFolder(folder).state().get("state") == FINISHED
        }
        test = scenes_of(seed)
        records = {arm: measure_run(folder, test) for arm, folder in finished.items()}
        if len(records) < len(ARMS):
            continue
        for arm, record in records.items():
            scores = {name: f"{score:.2f}" for name, score in record["measures"].items()}
            rows.append({"arm": arm, "seed": seed, **scores, "checkpoint": record["checkpoint"]})
    if not rows:
        sys.exit("error: no seed is finished")
    with open(out / "study.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
