"""Converts images and captions to WebDataset shards: training and validation splits, and
evaluation data sets."""

import functools
import hashlib
import io
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from webdataset import TarWriter

from ..errors import InputError
from ..files import make_folder, whole_file, write_json, write_text
from ..rendering import csv_text
from .held_out import held_out, image_digests
from .images import as_seen, counts_text, ignored_property, read_image
from .pairs import Pair
from .tar_shards import contract
from .workers import work_on

NUM_SHARDS = 32  # of the training split, enough to divide among workers and slices
# pairs per shard
SMALLEST = 16
LARGEST = 10_000
VALIDATION_SIZE = 1000  # pairs per shard of the validation split
SPLITS = ("train", "val")
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # by Pillow's format


class StoredImage(NamedTuple):
    """An image as it is stored in a shard."""

    extension: str
    content: bytes
    ignored: str  # what OpenCLIP would have ignored, so that the image is converted


def stored_image(image: Image.Image) -> StoredImage:
    """Returns the content of an opened image's file.

    It is converted if OpenCLIP cannot read its format, or would ignore something in the image.
    """
    ignored = ignored_property(image)
    extension = EXTENSIONS.get(image.format)
    if extension and not ignored:
        return StoredImage(extension, Path(image.filename).read_bytes(), ignored)
    content = io.BytesIO()
    kind = "JPEG" if extension == "jpg" else "PNG"
    # the options are those of JPEG; PNG is lossless
    as_seen(image).save(content, kind, quality=95, subsampling=0)
    return StoredImage(EXTENSIONS[kind], content.getvalue(), ignored)


class Shard(NamedTuple):
    """A shard to write."""

    file: Path
    rows: Sequence[int]  # indices of its pairs


@dataclass(frozen=True)
class Written:
    """The written shards: pattern and number of pairs of each split, skipped pairs, and
    evaluation data sets."""

    patterns: dict[str, str]
    sizes: dict[str, int]
    left_out: list[tuple[Pair, str]]  # with the reason
    converted: Counter  # numbers of images by what OpenCLIP would have ignored in them
    data_sets: list[str]


def write_pair_shards(
    pairs: list[Pair],
    out: Path,
    *,
    val_share: float,
    shard_size: int | None,
    seed: int,
    jobs: int,
) -> Written:
    """Writes OUT/train, OUT/val and OUT/evaluation.

    `val_share` is the fraction of the pairs for validation; no image and no caption is in both
    splits. Pairs are shuffled over the shards. Pairs without a caption or with an unreadable image
    are skipped and listed in OUT/left_out.csv. Raises InputError if OUT is not empty, or if no pair
    of a split can be written.
    """
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"OUT: {out} is not empty: remove it, or give another folder")
    left_out = [(pair, "no caption") for pair in pairs if not pair.caption]
    pairs = [pair for pair in pairs if pair.caption]
    images = image_digests([pair.image for pair in pairs])
    captions = [pair.caption for pair in pairs]
    rows = _shuffled_rows(held_out(images, captions, val_share, "--val-share"), seed)
    make_folder(out, "OUT")
    names = sorted({pair.label for pair in pairs if pair.label})
    labels = {label: number for number, label in enumerate(names)}
    write = functools.partial(_write_shard, pairs, labels)
    problems = {}
    converted = {}
    patterns = {}
    num_pairs = {}
    for split in SPLITS:
        (out / split).mkdir()
        shards = _shards_of(out / split, rows[split], shard_size)
        results = work_on(write, shards, jobs, "--jobs")
        sizes = {}
        for shard, (skipped, converted_rows) in zip(shards, results, strict=True):
            problems |= skipped
            converted |= converted_rows
            sizes[shard.file.name] = len(shard.rows) - len(skipped)
        write_json(out / split / "sizes.json", sizes)
        num_pairs[split] = sum(sizes.values())
        if shards:
            patterns[split] = contract([str(shard.file) for shard in shards])
    left_out += [(pairs[row], problems[row]) for row in sorted(problems)]
    lines = [(pair.where, pair.image, reason) for pair, reason in left_out]
    write_text(out / "left_out.csv", csv_text([("where", "image", "reason"), *lines]))
    for split in patterns:
        if not num_pairs[split]:
            raise InputError(
                f"no pair of the split {split} is left: {reasons(left_out)}; "
                f"{out}/left_out.csv lists all"
            )
    by_image = defaultdict(list)
    for row in sorted(rows["val"]):
        if row not in problems:
            by_image[images[row]].append(pairs[row])
    is_labelled = all(pairs[row].label for row in rows["train"] if row not in problems)
    # an image may have several captions
    converted_images = {images[row]: ignored for row, ignored in converted.items()}
    return Written(
        patterns=patterns,
        sizes=num_pairs,
        left_out=left_out,
        converted=Counter(converted_images.values()),
        data_sets=_write_evaluation(out, list(by_image.values()), labels, is_labelled=is_labelled),
    )


def reasons(left_out: list[tuple[Pair, str]]) -> str:
    """Returns a message on how many pairs were skipped and why."""
    return counts_text(Counter(reason.partition(" (")[0] for _, reason in left_out))


def _shuffled_rows(are_held_out: list[bool], seed: int) -> dict[str, list[int]]:
    """Returns the rows of each split, shuffled by the seed."""

    def digest(row: int) -> bytes:
        return hashlib.blake2b(f"{seed}\0{row}".encode(), digest_size=8).digest()

    rows = {split: [] for split in SPLITS}
    for row in sorted(range(len(are_held_out)), key=digest):
        rows["val" if are_held_out[row] else "train"].append(row)
    return rows


def _shards_of(folder: Path, rows: Sequence[int], shard_size: int | None) -> list[Shard]:
    """Returns the shards of a split."""
    wanted = math.ceil(len(rows) / NUM_SHARDS) if folder.name == "train" else VALIDATION_SIZE
    size = shard_size or min(LARGEST, max(SMALLEST, wanted))
    starts = range(0, len(rows), size)
    return [
        Shard(folder / f"{number:06}.tar", rows[start : start + size])
        for number, start in enumerate(starts)
    ]


def _write_shard(
    pairs: list[Pair], labels: dict[str, int], shard: Shard
) -> tuple[dict[int, str], dict[int, str]]:
    """Writes one shard; returns why pairs were skipped, and what was converted in images of others,
    by row."""
    skipped = {}
    converted = {}
    with whole_file(shard.file) as file, TarWriter(file, mtime=0) as writer:
        for row in shard.rows:
            pair = pairs[row]
            image, problem = read_image(pair.image, stored_image)
            if problem:
                skipped[row] = problem
                continue
            sample = {"__key__": f"{row:09}", image.extension: image.content, "txt": pair.caption}
            if pair.long:
                sample["long.txt"] = pair.long
            if pair.label:
                sample["cls"] = labels[pair.label]
            writer.write(sample)
            if image.ignored:
                converted[row] = image.ignored
    return skipped, converted


def _write_evaluation(
    out: Path,
    images: list[list[Pair]],
    labels: dict[str, int],
    *,
    is_labelled: bool,
) -> list[str]:
    """Writes validation images in CLIP_benchmark's layout, and returns the names of the data sets.

    `images` are the pairs of each image. `retrieval` contains each image with all its captions, one
    per line. `labels` is written if there are classes: each image with the index of its first
    class, and, if all pairs of the training split have one, links to its shards for the linear
    probe.
    """
    if not images:
        return []
    captions = []
    classes = []
    for pairs in images:
        lines = [" ".join(pair.caption.split()) for pair in pairs]
        captions.append((pairs[0], "\n".join(lines)))
        labelled = [pair for pair in pairs if pair.label]
        if labelled:
            classes.append((labelled[0], labels[labelled[0].label]))
    texts = {"dataset_type.txt": "retrieval"}
    write_data_set(out / "evaluation" / "retrieval", _samples(captions, "txt"), texts)
    if not classes:
        return ["retrieval"]
    folder = out / "evaluation" / "labels"
    texts = {
        "classnames.txt": "\n".join(labels),
        "zeroshot_classification_templates.txt": "a photo of a {c}.",
    }
    write_data_set(folder, _samples(classes, "cls"), texts)
    if is_labelled:
        (folder / "train").mkdir()
        shards = sorted((out / "train").glob("*.tar"))
        for number, shard in enumerate(shards):
            (folder / "train" / f"{number}.tar").symlink_to(Path("../../../train", shard.name))
        write_text(folder / "train" / "nshards.txt", f"{len(shards)}\n")
    return ["retrieval", "labels"]


def _samples(members: list[tuple[Pair, str | int]], extension: str) -> Iterator[dict]:
    """Yields a sample for each pair: its image, and a member with this extension."""
    for number, (pair, member) in enumerate(members):
        image, _ = read_image(pair.image, stored_image)
        yield {"__key__": f"{number:09}", image.extension: image.content, extension: member}


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
