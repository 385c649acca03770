"""Measures the runs of the study classes_and_samples on scenes of the seed's 25 objects.

`python docs/studies/classes_and_samples/measure.py RUNS FILE`, in the folder in which the study was
trained, measures each finished run in the folder RUNS and keeps its measures there, in
RUN/few-objects.json. If all runs are finished, it writes FILE, a CSV file with a row for each.
"""

import csv
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from make_scenes import ALL, FEW, FREQUENT, RARE, SEEDS, VERSION, few_objects
from openclip_superclip.lab.demo.scene_measures import (
    OpenedModel,
    fit_object_probe,
    fraction_found,
    name_classifier,
    object_labels,
    scene_features,
)
from openclip_superclip.lab.demo.scenes import DESIGNERS, UNSEEN_DESIGNERS, Scene, draw_image
from openclip_superclip.lab.studies.measure_run import open_trained

from openclip_superclip.checkpoints.began_with import versions_of_run
from openclip_superclip.files import content_digest, json_or_empty, write_json
from openclip_superclip.plans.recipe_files import read_recipe
from openclip_superclip.runs.folder import RunFolder

ARMS = {"CLIP": ("clip", 5e-4), "SuperCLIP": ("superclip", 1e-3)}  # method, learning rate
TEST_SCENES, PROBE_SCENES = 40, 80  # of each object


@dataclass(frozen=True)
class TestScenes:
    """A seed's 25 objects, its one-object test scenes, and those to which the probe is fitted."""

    names: list[str]
    unseen: list[Scene]
    seen: list[Scene]
    probe: list[Scene]


def one_object_scenes(
    names: list[str], per_object: int, key: tuple[int, int], designers: tuple[str, ...]
) -> list[Scene]:
    """Returns `per_object` scenes of each object; `key` seeds them."""
    rng = np.random.default_rng(key)
    scenes = []
    for name in names:
        for _ in range(per_object):
            image, layers = draw_image(rng, [name], designers)
            scenes.append(Scene(image, [name], {}, layers))
    return scenes


def scenes_of(seed: int) -> TestScenes:
    names = few_objects(seed)
    unseen, seen, probe = range(ALL + 1, ALL + 4)  # training scenes have the keys FEW and ALL
    return TestScenes(
        names=names,
        unseen=one_object_scenes(names, TEST_SCENES, (seed, unseen), UNSEEN_DESIGNERS),
        seen=one_object_scenes(names, TEST_SCENES, (seed, seen), DESIGNERS),
        probe=one_object_scenes(names, PROBE_SCENES, (seed, probe), DESIGNERS),
    )


def measured(opened: OpenedModel, test: TestScenes) -> dict[str, float]:
    """Returns the model's accuracies among the seed's 25 objects, in percent."""
    model, preprocess, tokenizer = opened
    with torch.inference_mode():
        classifier = name_classifier(model, tokenizer, test.names)  # [D, N]
        unseen, seen, probe_features = (
            scene_features(model, preprocess, shown)
            for shown in (test.unseen, test.seen, test.probe)
        )  # [S, D]
    probe = fit_object_probe(probe_features, object_labels(test.probe, test.names))
    labels = object_labels(test.unseen, test.names)  # the same for seen scenes, in their order
    return {
        "zero_shot": fraction_found(unseen @ classifier, labels),
        "linear_probe": fraction_found(probe(unseen), labels),
        "seen_zero_shot": fraction_found(seen @ classifier, labels),
        "seen_linear_probe": fraction_found(probe(seen), labels),
    }


def measure_run(folder: Path, test: TestScenes) -> dict:
    """Returns the digest of a finished run's weights and its measures, and keeps them in the run's
    folder."""
    weights = max((folder / "checkpoints").glob("epoch_*.pt"), key=epoch_of)
    facts = {
        "checkpoint": content_digest(weights)[:16],
        "scenes": [VERSION, TEST_SCENES, PROBE_SCENES],
        "versions": versions_of_run(),
    }
    file = folder / "few-objects.json"
    record = json_or_empty(file)
    if {name: record.get(name) for name in facts} != facts:
        opened = open_trained(weights, read_recipe(str(folder / "recipe.yaml")).model)
        record = facts | {"measures": measured(opened, test)}
        write_json(file, record)
    return record


def epoch_of(weights: Path) -> int:
    return int(weights.stem.removeprefix("epoch_"))


def finished_run(runs: Path, arm: str, version: str, seed: int) -> Path | None:
    """Returns the folder of a run, as `superclip study` names it; None if it is not finished."""
    for folder in runs.glob(f"*demo-data-{version}-{seed}-*_seed{seed}"):
        if RunFolder(folder).is_finished:
            recipe = read_recipe(str(folder / "recipe.yaml"))
            if (recipe.method, recipe.lr) == ARMS[arm]:
                return folder
    return None


def main(runs: Path, file: Path) -> None:
    torch.set_num_threads(1)
    rows = []
    missing = []
    for seed in SEEDS:
        test = scenes_of(seed)
        # the number of objects changes fastest, as tests/docs/test_evidence.py expects
        for arm, per_object, num_objects in itertools.product(ARMS, (FREQUENT, RARE), (FEW, ALL)):
            folder = finished_run(runs, arm, f"{num_objects}-{per_object}", seed)
            version = f"{num_objects} objects, {per_object} scenes of each"
            if folder is None:
                missing.append(f"{arm}, {version}, seed {seed}")
                continue
            record = measure_run(folder, test)
            scores = {name: f"{score:.2f}" for name, score in record["measures"].items()}
            run = {"arm": arm, "version": version, "seed": seed}
            rows.append({**run, **scores, "checkpoint": record["checkpoint"]})
    if missing:
        sys.exit(f"error: {len(missing)} runs are not finished, the first is {missing[0]}")
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
