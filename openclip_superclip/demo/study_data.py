"""The model and the scenes of the shipped studies: a vocabulary of the words that scenes can name, and no others."""

import gzip
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..atomic_files import whole_file
from .demo_model import NUM_TOKENS_WITHOUT_MERGES, write_small_resnet
from .scenes import DESIGNERS, NAMES, SECOND_DESIGNERS, names_of, write_shards

NUM_SHARDS, SHARD_SIZE = 20, 1024  # a pass; ten slices of two shards, which batches of 16 to 256 divide


class StudyData(NamedTuple):
    """A model and the scenes that it is trained on, by their places below the demo's folder."""

    folder: str
    model: str = "study-model"
    caption: str = "long"  # what the scenes' own text names: all their objects, or one (short)
    designers: Sequence[str] = DESIGNERS
    seed: int = 0

    @property
    def shards(self) -> str:
        return f"{self.folder}/{{000000..{NUM_SHARDS - 1:06d}}}.tar"


LONG, SHORT, SECOND = DATA = (
    StudyData("data/study"),
    StudyData("data/study-short", caption="short"),
    StudyData("data/study-second", model="study-model-second", designers=SECOND_DESIGNERS, seed=1),
)
CONTEXT = 18  # tokens: four names of two words and the commas between them


def write_study_data(folder: Path, data: StudyData = LONG) -> None:
    """Writes the model and the shards below `folder`."""
    write_study_model(folder / data.model, names_of(data.designers))
    write_shards(
        folder / data.folder,
        NUM_SHARDS * SHARD_SIZE,
        seed=data.seed,
        samples_per_shard=SHARD_SIZE,
        caption=data.caption,
        designers=data.designers,
    )


def write_study_model(folder: Path, names: Sequence[str] = NAMES) -> str:
    """Writes the model's configuration and vocabulary and returns the --model that opens it.

    OpenCLIP's ModifiedResNet of one block a stage and width 12, at 64 px, beside a text tower of two layers and width
    64. Captions become the very tokens that CLIP's tokenizer gives: the vocabulary holds the bytes and those of its
    merges that the names of the objects need. So the head is as small a part of a step as beside the paper's models.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = (folder / "bpe.txt.gz").resolve()
    merges = needed_merges(names)
    with whole_file(vocabulary) as file:  # the first line is a comment
        file.write(gzip.compress("\n".join(["#version: 0.2", *map(" ".join, merges)]).encode(), mtime=0))
    num_tokens = NUM_TOKENS_WITHOUT_MERGES + len(merges)
    text_cfg = {"context_length": CONTEXT, "vocab_size": num_tokens, "width": 64, "heads": 1}
    return write_small_resnet(folder, vocabulary, width=12, text_cfg=text_cfg)


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
