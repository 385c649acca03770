"""Writes the small model and the training shards of the demo."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

from ..files import check_results, write_bytes, write_text
from .scenes import IMAGE_SIZE, NAMES, check_shards, write_shards

CONTEXT = 18  # tokens: enough for four names of two words, separated by commas
NUM_TOKENS_WITHOUT_MERGES = 2 * 256 + 2  # bytes, bytes at the end of a word, start and end tokens
# OpenCLIP's ModifiedResNet with one block per stage
RESNET = {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 12, "head_width": 32}
# ten slices of two shards, divisible by batch sizes of 16 to 256
NUM_SHARDS = 20
SCENES = "data/scenes"  # the folder of the shards, in the demo's folder
SHARD_SIZE = 1024


def write_training_data(folder: Path) -> tuple[str, str]:
    """Writes the model and the shards, unless they exist, and returns the values of --model and
    --train-data."""
    check_shards(folder / SCENES)
    write_model(folder / "model")
    write_shards(folder / SCENES, NUM_SHARDS * SHARD_SIZE, SHARD_SIZE)
    return model_of(folder), shards_of(folder)


def model_of(folder: Path) -> str:
    """Returns the value of --model that opens the model in the demo's folder."""
    return f"local-dir:{folder / 'model'}"


def shards_of(folder: Path) -> str:
    """Returns the pattern of the shards in the demo's folder."""
    return f"{folder / SCENES}/{{000000..{NUM_SHARDS - 1:06d}}}.tar"


def write_model(folder: Path) -> None:
    """Writes a model's configuration and vocabulary.

    The image tower is RESNET, and the text tower has two layers of width 64. The vocabulary
    contains only the bytes and the merges that NAMES need, and gives the same tokens as CLIP's
    tokenizer. This keeps the head's fraction of the training time as small as in the paper's
    models.
    """
    check_results(folder, ("open_clip_config.json", "bpe.txt.gz"), "model_cfg")
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
