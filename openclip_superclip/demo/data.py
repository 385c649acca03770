"""Writes the small model, the training shards and the evaluation data of the demo."""

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from webdataset import TarWriter

from ..files import check_results, whole_file, write_bytes, write_text
from .scenes import (
    IMAGE_SIZE,
    NAMES,
    Scene,
    different_scenes,
    numbered,
    scenes,
    write_shards,
)

CONTEXT = 18  # tokens: enough for four names of two words, separated by commas
NUM_TOKENS_WITHOUT_MERGES = 2 * 256 + 2  # bytes, bytes at the end of a word, start and end tokens
# OpenCLIP's ModifiedResNet with one block per stage
RESNET = {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 12, "head_width": 32}
# ten slices of two shards, divisible by batch sizes of 16 to 256
NUM_SHARDS = 20
SHARD_SIZE = 1024


def write_training_data(folder: Path) -> tuple[str, str]:
    """Writes the model and the shards, unless they exist, and returns the values of --model and
    --train-data."""
    write_model(folder / "model")
    write_shards(folder / "data/scenes", NUM_SHARDS * SHARD_SIZE, SHARD_SIZE)
    return model_of(folder), shards_of(folder)


def model_of(folder: Path) -> str:
    """Returns the value of --model that opens the model in the demo's folder."""
    return f"local-dir:{folder / 'model'}"


def shards_of(folder: Path) -> str:
    """Returns the pattern of the shards in the demo's folder."""
    return f"{folder / 'data/scenes'}/{{000000..{NUM_SHARDS - 1:06d}}}.tar"


def write_model(folder: Path) -> None:
    """Writes a model's configuration and vocabulary.

    The image tower is RESNET, and the text tower has two layers of width 64. The vocabulary
    contains only the bytes and the merges that NAMES need, and gives the same tokens as CLIP's
    tokenizer. This keeps the head's fraction of the training time as small as in the paper's
    models.
    """
    check_results(folder, ("open_clip_config.json", "bpe.txt.gz"), '"bpe_path"')
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = (folder / "bpe.txt.gz").resolve()
    merges = needed_merges(NAMES)
    lines = ["#version: 0.2", *map(" ".join, merges)]  # the tokenizer skips the first one
    text_cfg = {
        "context_length": CONTEXT,
        "vocab_size": NUM_TOKENS_WITHOUT_MERGES + len(merges),
        "tokenizer_kwargs": {"bpe_path": str(vocabulary)},
        "width": 64,
        "heads": 1,
        "layers": 2,
    }
    model_cfg = {"embed_dim": 128, "vision_cfg": RESNET, "text_cfg": text_cfg}
    write_text(
        folder / "open_clip_config.json",
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}, indent=2),
    )
    write_bytes(vocabulary, gzip.compress("\n".join(lines).encode(), mtime=0))


def needed_merges(names: Iterable[str]) -> list[tuple[str, str]]:
    """Returns the merges that CLIP's tokenizer uses for the names, in the order of its
    vocabulary."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    needed = set()
    merge_of = {"".join(merge): merge for merge in tokenizer.bpe_ranks}  # each string has one merge
    parts = {tokenizer.decoder[token] for token in tokenizer.encode(", ".join(names))}
    while parts:
        merges = {merge_of[part] for part in parts if part in merge_of}
        needed |= merges
        parts = set().union(*merges)
    return sorted(needed, key=tokenizer.bpe_ranks.get)


EVALUATION_DATA = ("demo_objects", "demo_scenes")  # folders of `write_evaluation_data`


def write_evaluation_data(
    folder: Path, num_scenes: int = 1000, num_probe_scenes: int = 2000
) -> dict[str, Path]:
    """Writes two data sets in CLIP_benchmark's WebDataset layout, and returns their folders by
    name.

    demo_objects: scenes of one object, labelled with the index of its name; splits `test` and
        `train` (linear probe).
    demo_scenes: scenes of at least two objects, all different, with long captions, for retrieval.

    The test scenes are the same as in the demo.
    """
    objects, groups = (folder / name for name in EVALUATION_DATA)
    _write_split(objects, "test", scenes(num_scenes, split="test", num_objects=(1,)), num_scenes)
    _write_split(objects, "train", scenes(num_probe_scenes, num_objects=(1,)), num_probe_scenes)
    write_text(objects / "classnames.txt", "\n".join(NAMES) + "\n")
    write_text(objects / "zeroshot_classification_templates.txt", "{c}\n")  # plain names
    _write_split(groups, "test", different_scenes(num_scenes, 0, "test"), num_scenes)
    write_text(groups / "dataset_type.txt", "retrieval\n")
    return dict(zip(EVALUATION_DATA, (objects, groups), strict=True))


def _write_split(data_set: Path, split: str, shown: Iterable[Scene], num_scenes: int) -> None:
    """Writes scenes as a split of one shard."""
    folder = data_set / split
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "nshards.txt", "1\n")
    with whole_file(folder / "0.tar") as file, TarWriter(file, mtime=0) as tar:
        for sample in _samples(numbered(shown, num_scenes, data_set.name)):
            tar.write(sample)


def _samples(shown: Iterable[tuple[int, Scene]]) -> Iterator[dict]:
    """Yields samples of scenes: of one object with the index of its name, of several with the
    long caption."""
    for index, scene in shown:
        sample = {"__key__": f"{index:06d}", "png": scene.image}
        if len(scene.objects) == 1:
            sample["cls"] = NAMES.index(scene.objects[0])
        else:
            sample["txt"] = scene.captions["long"]
        yield sample
