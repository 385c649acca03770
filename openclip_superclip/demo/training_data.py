"""The models and the scenes that the recipes of the demo and the shipped studies train."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .demo_model import RESNET, VIT, write_model
from .scenes import DESIGNERS, SECOND_DESIGNERS, names_of, write_shards

NUM_SHARDS, SHARD_SIZE = 20, 1024  # a pass; ten slices of two shards, which batches of 16 to 256 divide


class TrainingData(NamedTuple):
    """A model and the scenes that it is trained on, by their places below the demo's folder."""

    folder: str
    model: str = "model"
    caption: str = "long"  # what the scenes' own text names: all their objects, or one (short)
    designers: Sequence[str] = DESIGNERS
    seed: int = 0
    vision: Mapping[str, object] = RESNET  # of the model's configuration

    @property
    def shards(self) -> str:
        return f"{self.folder}/{{000000..{NUM_SHARDS - 1:06d}}}.tar"


SCENES, SHORT_CAPTIONS, SECOND_DRAW, FOR_VIT = TRAINING_DATA = (
    TrainingData("data/scenes"),
    TrainingData("data/scenes-short", caption="short"),
    TrainingData("data/scenes-second", model="model-second", designers=SECOND_DESIGNERS, seed=1),
    TrainingData("data/scenes", model="model-vit", vision=VIT),
)


def write_training_data(folder: Path, data: TrainingData = SCENES) -> tuple[str, str]:
    """Writes both below `folder`, and returns the --model and the --train-data that open them."""
    model = write_model(folder / data.model, names_of(data.designers), data.vision)
    shards = write_shards(
        folder / data.folder,
        NUM_SHARDS * SHARD_SIZE,
        seed=data.seed,
        samples_per_shard=SHARD_SIZE,
        caption=data.caption,
        designers=data.designers,
    )
    return model, shards
