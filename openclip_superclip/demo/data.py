"""Writes the small models, training shards and evaluation data of the demo and of the shipped
studies."""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from webdataset import TarWriter

from ..files import check_results, whole_file, write_bytes, write_text
from . import natural
from . import scenes as drawn

CONTEXT = 18  # tokens: enough for four names of two words, separated by commas
NUM_TOKENS_WITHOUT_MERGES = 2 * 256 + 2  # bytes, bytes at the end of a word, start and end tokens
RESNET = {"image_size": drawn.IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 12, "head_width": 32}
VIT = {"image_size": drawn.IMAGE_SIZE, "patch_size": 8, "layers": 4, "width": 96, "head_width": 32}
SMALL_VIT = VIT | {"image_size": 48}  # scenes are resized


def write_model(
    folder: Path,
    names: Sequence[str] = drawn.NAMES,
    vision: Mapping[str, object] = RESNET,
    context_length: int = CONTEXT,
) -> str:
    """Writes a model's configuration and vocabulary, and returns the value of --model that opens
    it.

    The default is OpenCLIP's ModifiedResNet with one block per stage and width 12, at 64 px. The
    text tower has two layers of width 64. The vocabulary contains only the bytes and the merges
    that `names` need, and gives the same tokens as CLIP's tokenizer. This keeps the head's fraction
    of the training time as small as in the paper's models.
    """
    check_results(folder, ("open_clip_config.json", "bpe.txt.gz"), '"bpe_path"')
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = (folder / "bpe.txt.gz").resolve()
    merges = needed_merges(names)
    lines = ["#version: 0.2", *map(" ".join, merges)]  # the tokenizer skips the first one
    text_cfg = {
        "context_length": context_length,
        "vocab_size": NUM_TOKENS_WITHOUT_MERGES + len(merges),
        "tokenizer_kwargs": {"bpe_path": str(vocabulary)},
        "width": 64,
        "heads": 1,
        "layers": 2,
    }
    model_cfg = {"embed_dim": 128, "vision_cfg": vision, "text_cfg": text_cfg}
    write_text(
        folder / "open_clip_config.json",
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}, indent=2),
    )
    write_bytes(vocabulary, gzip.compress("\n".join(lines).encode(), mtime=0))
    return f"local-dir:{folder}"


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


# ten slices of two shards, divisible by batch sizes of 16 to 256
NUM_SHARDS = 20
SHARD_SIZE = 1024


class TrainingData(NamedTuple):
    """A model and its training scenes. Paths are relative to the demo's folder."""

    folder: str  # contains {seed} if each seed has other scenes, as in the data set `natural`
    model: str = "model"
    caption: str = "long"  # "long" names all objects of a scene, "short" one of them
    designers: drawn.Designers = drawn.DESIGNERS
    seed: int = 0
    vision: Mapping[str, object] = RESNET  # vision_cfg of the model's configuration

    @property
    def shards(self) -> str:
        return f"{self.folder}/{{000000..{NUM_SHARDS - 1:06d}}}.tar"


SCENES = TrainingData("data/scenes")
SECOND_DRAW = TrainingData(
    "data/scenes-second", model="model-second", designers=drawn.SECOND_DESIGNERS, seed=1
)
NATURAL = TrainingData("data/natural-{seed}", model="natural-vit", vision=SMALL_VIT)
TRAINING_DATA = (
    SCENES,
    TrainingData("data/scenes-short", caption="short"),
    SECOND_DRAW,
    TrainingData("data/scenes", model="model-vit", vision=VIT),
    TrainingData("data/scenes-{seed}", model="model-vit", vision=VIT),
    TrainingData("data/scenes", model="model-vit-average", vision=VIT | {"pool_type": "avg"}),
    TrainingData("data/scenes", model="model-vit-deep", vision=VIT | {"layers": 8, "width": 64}),
    NATURAL,
    TrainingData(
        "data/natural-{seed}", model="natural-vit-average", vision=SMALL_VIT | {"pool_type": "avg"}
    ),
    TrainingData("data/natural-{seed}", model="natural-resnet"),
)


def write_training_data(
    folder: Path, data: TrainingData = SCENES, seeds: Iterable[int] = (0,)
) -> tuple[str, str]:
    """Writes a model and shards, for each seed if they differ, and returns the values of --model
    and --train-data."""
    num_samples = NUM_SHARDS * SHARD_SIZE
    if data.folder == NATURAL.folder:
        model = write_model(folder / data.model, natural.vocabulary(), data.vision, natural.CONTEXT)
    else:
        model = write_model(folder / data.model, drawn.names_of(data.designers), data.vision)
    for seed in seeds if "{seed}" in data.folder else [data.seed]:
        shards = folder / data.folder.format(seed=seed)
        if data.folder == NATURAL.folder:
            facts = {
                "natural": natural.VERSION,
                "seed": seed,
                "num_samples": num_samples,
                "samples_per_shard": SHARD_SIZE,
            }
            world = natural.World(seed)
            shown = (world.scene("train", index) for index in range(num_samples))
            drawn.write_scenes(shards, facts, shown, "short")
        else:
            drawn.write_shards(
                shards, num_samples, seed, SHARD_SIZE, data.caption, designers=data.designers
            )
    return model, f"{folder / data.shards}"


def write_data_set(
    folder: Path, samples: Iterable[dict], texts: dict[str, str], split: str = "test"
) -> None:
    """Writes a split of one shard in CLIP_benchmark's layout, and text files by their names."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    for name, text in (texts | {f"{split}/nshards.txt": "1"}).items():
        write_text(folder / name, f"{text}\n")
    with whole_file(folder / split / "0.tar") as file, TarWriter(file, mtime=0) as tar:
        for sample in samples:
            tar.write(sample)


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
    objects = folder / "demo_objects"
    groups = folder / "demo_scenes"
    texts = {
        "classnames.txt": "\n".join(drawn.NAMES),
        "zeroshot_classification_templates.txt": "{c}",  # plain names
    }
    singles = drawn.scenes(num_scenes, split="test", num_objects=(1,))
    write_data_set(objects, _samples(singles, num_scenes, objects.name), texts)
    probe_scenes = drawn.scenes(num_probe_scenes, num_objects=(1,))
    write_data_set(objects, _samples(probe_scenes, num_probe_scenes, objects.name), {}, "train")
    different = drawn.different_scenes(num_scenes, 0, "test")
    samples = _samples(different, num_scenes, groups.name)
    write_data_set(groups, samples, {"dataset_type.txt": "retrieval"})
    return {"demo_objects": objects, "demo_scenes": groups}


def _samples(shown: Iterable[drawn.Scene], num_scenes: int, data_set: str) -> Iterator[dict]:
    """Yields samples of scenes: of one object with the index of its name, of several with the
    long caption."""
    for index, scene in drawn.numbered(shown, num_scenes, data_set):
        sample = {"__key__": f"{index:06d}", "png": scene.image}
        if len(scene.objects) == 1:
            sample["cls"] = drawn.NAMES.index(scene.objects[0])
        else:
            sample["txt"] = scene.captions["long"]
        yield sample
