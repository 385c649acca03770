"""The model and the shards that the recipes in recipes/demo name."""

from pathlib import Path

from .demo_model import write_model
from .scenes import write_shards

NUM_SHARDS, SHARD_SIZE = 16, 512  # 4 slices of 4 shards: every batch size and 1, 2 or 4 ranks divide them


def write_recipe_data(folder: Path) -> tuple[str, str]:
    """Writes both below `folder`, and returns the --model and the --train-data that open them."""
    model = write_model(folder / "model")
    shards = write_shards(
        folder / "data" / "recipes", NUM_SHARDS * SHARD_SIZE, seed=0, samples_per_shard=SHARD_SIZE, caption="long"
    )
    return model, shards
