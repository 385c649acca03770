"""The demo's model: OpenCLIP's own parts, small, and a vocabulary of the words that scenes can name and no others."""

import gzip
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..atomic_files import whole_file, write_text
from .scenes import IMAGE_SIZE, NAMES

CONTEXT = 18  # tokens: four names of two words and the commas between them
NUM_TOKENS_WITHOUT_MERGES = 2 * 256 + 2  # bytes, bytes that end a word, start and end
RESNET = {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 12, "head_width": 32}
VIT = {"image_size": IMAGE_SIZE, "patch_size": 8, "layers": 4, "width": 96, "head_width": 32}


def write_model(folder: Path, names: Sequence[str] = NAMES, vision: Mapping[str, object] = RESNET) -> str:
    """Writes the model's configuration and vocabulary and returns the --model that opens it.

    OpenCLIP's ModifiedResNet of one block a stage and width 12, at 64 px, where `vision` says no other, beside a text
    tower of two layers and width 64. Captions become the very tokens that CLIP's tokenizer gives: the vocabulary holds
    the bytes and those of its merges that the names of the objects need. So the head is as small a part of a step as
    beside the paper's models.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = (folder / "bpe.txt.gz").resolve()
    merges = needed_merges(names)
    with whole_file(vocabulary) as file:  # the first line is a comment
        file.write(gzip.compress("\n".join(["#version: 0.2", *map(" ".join, merges)]).encode(), mtime=0))
    text_cfg = {
        "context_length": CONTEXT,
        "vocab_size": NUM_TOKENS_WITHOUT_MERGES + len(merges),
        "tokenizer_kwargs": {"bpe_path": str(vocabulary)},
        "width": 64,
        "heads": 1,
        "layers": 2,
    }
    model_cfg = {
        "embed_dim": 128,
        "vision_cfg": vision,
        "text_cfg": text_cfg,
    }
    write_text(folder / "open_clip_config.json", json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}, indent=2))
    return f"local-dir:{folder}"


def needed_merges(names: Iterable[str]) -> list[tuple[str, str]]:
    """Returns the merges of CLIP's vocabulary by which its tokenizer spells the names, in its order.

    With these alone it spells them as with all: a pair that it joins is one of them, whichever others there are.
    """
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    ranks, needed = tokenizer.bpe_ranks, set()
    for word in sorted(set(tokenizer.pat.findall(", ".join(names).lower()))):
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while pairs := [pair for pair in itertools.pairwise(parts) if pair in ranks]:
            best = min(pairs, key=ranks.get)
            needed.add(best)
            parts = _joined(parts, best)
    return sorted(needed, key=ranks.get)


def _joined(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """Returns the parts with every occurrence of the pair as one."""
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined
