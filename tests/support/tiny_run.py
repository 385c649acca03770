"""A recipe that trains in seconds on CPU processes, and what a run of it
leaves behind."""

from ruamel.yaml import YAML

from support import DATA, read_json
from support.data import SHARD_SIZE, write_shards
from support.models import assert_equal, write_model
from support.training_runs import load

NUM_SHARDS, SLICES = 12, 3


def write_recipe(folder, method="superclip", batch=16, passes=2, **values):
    """Writes a recipe with its model and its shards, and returns its file,
    METHOD_tiny_SAMPLES_bsBATCH.yaml."""
    shards = write_shards(folder / "shards", NUM_SHARDS)
    num_samples = NUM_SHARDS * SHARD_SIZE
    small = {"layers": 1, "width": 32}
    recipe = YAML(typ="safe").load(DATA / "tiny.yaml") | {
        "method": method,
        "model": write_model(folder / "model", small, {**small, "heads": 2}),
        "shards": shards,
        "data_samples": num_samples,
        "samples": num_samples * passes,
        "global_batch_size": batch,
        **values,
    }
    if method.startswith("super"):
        recipe["superclip"] = {"weight": 1.0, "idf": "online", "captions": "short"}
    path = folder / f"{method}_tiny_{num_samples}_bs{batch}.yaml"
    YAML().dump(recipe, path)
    return path


def state(run):
    """What state.json says, nothing before there is one."""
    path = run / "state.json"
    return read_json(path) if path.exists() else {}


def outcome(run):
    """The state of a run and its error, as state.json says."""
    return state(run)["state"], state(run)["error"]


def weights(run, epoch=2 * SLICES):
    """The weights, counts included, of a run's checkpoint, without what
    data parallelism puts before their names."""
    return load(run, epoch)["state_dict"]


def assert_equal_weights(run, other):
    assert_equal(weights(run), weights(other))
