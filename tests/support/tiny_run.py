"""A recipe that trains in seconds on CPU processes, and what a run of it leaves behind."""

import json
from pathlib import Path

import torch
from ruamel.yaml import YAML

from support.data import SHARD_SIZE, write_shards
from support.models import write_model
from support.training_runs import load

NUM_SHARDS, SLICES, BATCH = 12, 3, 16


def write_recipe(
    folder: Path, method: str = "superclip", batch: int = BATCH, passes: int = 2, **values
) -> Path:
    """Writes a recipe with its model and its shards, and returns its file,
    METHOD_tiny_SAMPLES_bsBATCH.yaml."""
    shards = write_shards(folder / "shards", NUM_SHARDS)
    num_samples = NUM_SHARDS * SHARD_SIZE
    small = {"layers": 1, "width": 32}
    recipe = {
        "method": method,
        "model": write_model(folder / "model", small, {**small, "heads": 2}),
        "data": "noise",
        "shards": shards,
        "data_samples": num_samples,
        "samples": num_samples * passes,
        "global_batch_size": batch,
        "lr": 1e-3,
        "warmup": 4,
        "schedule": "cosine",
        "beta1": 0.9,
        "beta2": 0.98,
        "eps": 1e-6,
        "wd": 0.2,
        "precision": "fp32",
        "seed": 0,
        "slices": SLICES,
        "workers": 0,
        "flags": {"log-every-n-steps": 1},
        "chosen": {"lr": "for a test"},
        **values,
    }
    if method.startswith("super"):
        recipe["superclip"] = {"weight": 1.0, "idf": "online", "captions": "short"}
    path = folder / f"{method}_tiny_{num_samples}_bs{batch}.yaml"
    YAML().dump(recipe, path)
    return path


def state(run: Path) -> dict:
    """What state.json says, nothing before there is one."""
    path = run / "state.json"
    return json.loads(path.read_text()) if path.exists() else {}


def weights(run: Path, epoch: int = 2 * SLICES) -> dict[str, torch.Tensor]:
    """The weights, counts included, of a run's checkpoint, without what data parallelism puts
    before their names."""
    return load(run, epoch)["state_dict"]


def assert_equal_weights(run: Path, other: Path) -> None:
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different
