"""What the class loss predicts: `python docs/studies/target_mass.py`, about a minute.

Prints the fraction of the class loss's target mass, with IDF weights, that belongs to the names of
objects in the image, in the training captions of the demo and of the data set `natural` (seed 0).
"""

import statistics
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import open_clip
import torch
from openclip_superclip.lab.demo import natural
from openclip_superclip.lab.demo.data import CONTEXT, NATURAL, NUM_SHARDS, SHARD_SIZE, write_model
from openclip_superclip.lab.demo.scenes import NAMES, Scene, scenes

from openclip_superclip import TokenStatistics

NUM_SCENES = NUM_SHARDS * SHARD_SIZE


def fraction_of_names(
    shown: Iterable[Scene], caption: str, words: list[str], context: int
) -> tuple[float, float]:
    """Returns the fraction of target mass on names of objects in the image, and the mean scenes
    with an object."""
    pairs = [(scene.captions[caption], set(scene.objects)) for scene in shown]
    with TemporaryDirectory() as folder:
        model = write_model(Path(folder), words, NATURAL.vision, context)
        tokenizer = open_clip.get_tokenizer(model)
    special = tokenizer.all_special_ids
    tokens = tokenizer([text for text, _ in pairs])  # [N, L]
    token_statistics = TokenStatistics(tokenizer.vocab_size, ignored_tokens=(0, *special))
    token_statistics.update(tokens)
    idf = token_statistics.idf()  # [V]
    fractions = []
    for row, (_, objects) in zip(tokens, pairs, strict=True):
        labels = row.unique()
        labels = labels[idf[labels] > 0]
        names = torch.tensor(tokenizer.encode(" ".join(objects)))
        mass = idf[labels]
        fractions.append(float(mass[torch.isin(labels, names)].sum() / mass.sum()))
    num_shown = sum(len(objects) for _, objects in pairs)
    num_objects = len(set().union(*(objects for _, objects in pairs)))
    return statistics.mean(fractions), num_shown / num_objects


def main() -> None:
    world = natural.World(0)
    careless = (world.scene("train", index) for index in range(NUM_SCENES))
    fractions = {
        "demo": fraction_of_names(scenes(NUM_SCENES), "long", NAMES, CONTEXT),
        "natural": fraction_of_names(careless, "short", natural.vocabulary(), natural.CONTEXT),
    }
    for name, (fraction, per_object) in fractions.items():
        print(
            f"{name}: {100 * fraction:.1f} % of the target mass; {per_object:.0f} scenes per object"
        )


if __name__ == "__main__":
    main()
