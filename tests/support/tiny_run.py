"""A recipe that trains in seconds on CPU processes, and what a run of it leaves behind."""

import json
import textwrap
from pathlib import Path

import torch
from ruamel.yaml import YAML

from support.models import write_model
from support.small_shards import SHARD_SIZE, write_shards

NUM_SHARDS, SLICES, BATCH = 12, 3, 16


def write_recipe(folder: Path, method: str = "superclip", batch: int = BATCH, passes: int = 2, **values) -> Path:
    """Writes a recipe with its model and its shards, and returns its file, METHOD_tiny_SAMPLES_bsBATCH.yaml."""
    shards = write_shards(folder / "shards", NUM_SHARDS)
    num_samples = NUM_SHARDS * SHARD_SIZE
    small = {"layers": 1, "width": 32}
    recipe = {
        "method": method, "model": write_model(folder / "model", small, {**small, "heads": 2}), "data": "noise",
        "shards": shards, "data_samples": num_samples, "samples": num_samples * passes,
        "global_batch_size": batch, "lr": 1e-3, "warmup": 4, "schedule": "cosine", "beta1": 0.9, "beta2": 0.98,
        "eps": 1e-6, "wd": 0.2, "precision": "fp32", "seed": 0, "slices": SLICES, "workers": 0,
        "flags": {"log-every-n-steps": 1}, "chosen": {"lr": "for a test"}, **values,
    }  # fmt: skip
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
    """The weights, counts included, of a run's checkpoint, without what data parallelism puts before their names."""
    checkpoint = torch.load(run / "checkpoints" / f"epoch_{epoch}.pt", weights_only=False)
    return {name.removeprefix("module."): value for name, value in checkpoint["state_dict"].items()}


def assert_equal_weights(run: Path, other: Path) -> None:
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


def write_plugin(folder: Path, create_loss: str) -> Path:
    """Writes a plugin of OpenCLIP's that returns another `loss`; PYTHONPATH=FOLDER installs it."""
    info = folder / "cracked-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cracked\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[open_clip]\ncracked = cracked\n")
    (folder / "cracked.py").write_text(
        "import itertools, os, time\n"
        "from open_clip.hooks import hookimpl\n\n"
        "@hookimpl(wrapper=True)\n"
        "def open_clip_create_loss(args):\n    from open_clip import create_loss\n\n"
        "    loss = (yield) or create_loss(args)\n" + textwrap.indent(create_loss, "    ")
    )
    return folder


def write_slow_loss(folder: Path, seconds: float) -> Path:
    """Writes a plugin that makes each step take so many seconds more, so that a run can be disturbed in its midst."""
    return write_plugin(
        folder, f"def slow(**features):\n    time.sleep({seconds})\n    return loss(**features)\nreturn slow\n"
    )


def write_failing_plugin(folder: Path) -> Path:
    """Writes a plugin that fails on rank 1 once the model is made."""
    fails = "if os.environ['RANK'] == '1':\n    raise RuntimeError('the lens of rank 1 is cracked')\nreturn loss\n"
    return write_plugin(folder, fails)


def write_disturbed_loss(folder: Path, step: int, what: str) -> Path:
    """Writes a plugin with a loss that in the `step`-th step of a process is `what`."""
    return write_plugin(
        folder,
        "steps = itertools.count(1)\n"
        "def disturbed(**features):\n"
        "    losses, step = loss(**features), next(steps)\n"
        f"    return {{name: {what} if step == {step} else value for name, value in losses.items()}}\n"
        "return disturbed\n",
    )
