"""Converts images and captions to WebDataset shards: training and validation splits, and
evaluation data sets."""

import functools
import hashlib
import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm
from webdataset import TarWriter

from ..errors import InputError
from ..files import make_folder, read_json, whole_file, write_json, write_text
from ..rendering import csv_text
from .held_out import held_out, image_digests
from .images import as_seen, ignored_property, images_below, open_image, unreadable
from .tables import Columns, is_table, rows_of
from .tar_shards import contract, text_of, work_on

NUM_SHARDS = 32  # of the training split, enough to divide among workers and slices
SMALLEST, LARGEST = 16, 10_000  # pairs per shard
VALIDATION_SIZE = 1000  # pairs per shard of the validation split
SPLITS = ("train", "val")


class Keys(NamedTuple):
    """The columns of a table, or the fields of a JSON file, that make up a pair."""

    columns: Columns
    label: str = ""  # the class; "" if there is none
    long: str = ""  # a second, longer caption


class Pair(NamedTuple):
    """The path of an image, and its texts; a missing text is ""."""

    where: str  # for messages: "row 3"
    image: str
    caption: str
    label: str = ""
    long: str = ""


def read_pairs(path: str, keys: Keys, images: Path | None) -> list[Pair]:
    """Returns the pairs of a table, a folder or COCO's JSON with its images in `images`;
    InputError for none."""
    place = Path(path)
    if is_table(path):
        pairs = list(pairs_of_table(path, keys))
    elif place.is_dir():
        pairs = list(pairs_of_folder(place, keys))
    elif path.endswith(".json"):
        pairs = _pairs_of_coco(place, images or place.parent)
    else:
        missing = "" if place.exists() else ": there is no such file or folder"
        raise InputError(
            f"SOURCE is {path}{missing}; expected a table (.csv, .tsv), a folder of images or "
            "COCO's .json"
        )
    if not pairs:
        raise InputError(
            f"{path} holds no pair"
            + ": expected images beside their .txt or .json" * place.is_dir()
        )
    for name, key in (("label", keys.label), ("long", keys.long)):
        if key and not any(getattr(pair, name) for pair in pairs):
            raise InputError(f"--{name}-key: no pair of {path} has a '{key}'")
    return pairs


def pairs_of_table(path: str, keys: Keys, flag: str = "SOURCE") -> Iterator[Pair]:
    """Yields the rows of a table; InputError, which names `flag`, if it cannot be read."""
    for number, row in enumerate(rows_of(path, keys.columns, flag, dtype=str), 1):
        yield Pair(f"row {number}", text_of(row[keys.columns.image]), *_texts(row, keys))


def pairs_of_folder(folder: Path, keys: Keys) -> Iterator[Pair]:
    """Yields the images below a folder that have a .txt or .json file of the same name."""
    for image in images_below(folder):
        text, fields = image.with_suffix(".txt"), image.with_suffix(".json")
        if text.is_file() or fields.is_file():
            pair = Pair(str(image), str(image), *_texts(read_json(fields, default={}), keys))
            if text.is_file() and not keys.columns.caption:  # a field of the .json
                pair = pair._replace(caption=text.read_text("utf-8-sig", errors="replace").strip())
            yield pair


def _pairs_of_coco(file: Path, images: Path) -> list[Pair]:
    """Returns a pair for each caption of a JSON in COCO's format."""
    content = read_json(file)
    try:
        names = {image["id"]: str(images / image["file_name"]) for image in content["images"]}
        annotations = enumerate(content["annotations"], 1)
        return [
            Pair(f"annotation {n}", names[one["image_id"]], text_of(one["caption"]))
            for n, one in annotations
        ]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{file} does not have the format of COCO's captions ({error!r})"
        ) from error


def _texts(row: dict, keys: Keys) -> Iterator[str]:
    """Yields the caption, the label, in one line, and the long caption of a row; "" if missing."""
    yield text_of(row.get(keys.columns.caption or "caption"))
    yield " ".join(text_of(row.get(keys.label)).split())
    yield text_of(row.get(keys.long))


class StoredImage(NamedTuple):
    """An image as it is stored in a shard."""

    extension: str
    content: bytes
    ignored: str = ""  # what OpenCLIP would have ignored, so that the image is converted


def stored_image(path: str) -> StoredImage:
    """Returns the content of an image's file.

    It is converted if OpenCLIP cannot read its format, or would ignore something in the image.
    Raises Pillow's errors for a broken file.
    """
    with open_image(path) as image:
        ignored = ignored_property(image)
        is_jpeg = image.format in ("JPEG", "MPO")
        extension = "jpg" if is_jpeg else {"PNG": "png", "WEBP": "webp"}.get(image.format)
        if extension and not ignored:
            return StoredImage(extension, Path(path).read_bytes())
        written = io.BytesIO()
        if is_jpeg:
            as_seen(image).save(written, "JPEG", quality=95, subsampling=0)
        else:
            as_seen(image).save(written, "PNG")
        return StoredImage("jpg" if is_jpeg else "png", written.getvalue(), ignored)


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
    val_share: float = 0.1,
    shard_size: int | None = None,
    seed: int = 0,
    jobs: int = 1,
) -> Written:
    """Writes OUT/train, OUT/val and OUT/evaluation.

    `val_share` is the fraction of the pairs for validation; no image and no caption is in both
    splits. Pairs are shuffled over the shards. Pairs without a caption or with an unreadable image
    are skipped and listed in OUT/left_out.csv. Raises InputError if OUT is not empty, or if no pair
    of a split can be written.
    """
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"OUT: {out} is not empty: remove it, or give another folder")
    digests = image_digests(pair.image for pair in pairs)
    images = [digests[pair.image] for pair in pairs]
    captions = [pair.caption for pair in pairs]
    rows = _shuffled_rows(held_out(images, captions, val_share, "--val-share"), seed)
    make_folder(out, "OUT")
    shards = []
    for split in SPLITS:
        (out / split).mkdir()
        shards += _shards_of(split, rows[split], shard_size)
    names = sorted({pair.label for pair in pairs if pair.label})
    labels = {label: number for number, label in enumerate(names)}
    write = functools.partial(_write_shard, pairs, out, labels)
    results = work_on(write, shards, jobs, "--jobs") if jobs > 1 else map(write, shards)
    sizes = {split: {} for split in SPLITS}
    bad: dict[int, str] = {}
    converted: dict[str, str] = {}  # by image, which may have several captions
    with tqdm(total=len(pairs), desc="pairs", unit=" pairs", disable=None) as progress:
        for (split, number, in_shard), (problems, ignored) in zip(shards, results, strict=True):
            sizes[split][f"{number:06}.tar"] = len(in_shard) - len(problems)
            bad |= problems
            converted |= {images[row]: what for row, what in ignored.items()}
            progress.update(len(in_shard))
    left_out = [(pairs[row], bad[row]) for row in sorted(bad)]
    lines = [("where", "image", "reason")]
    lines += [(pair.where, pair.image, reason) for pair, reason in left_out]
    write_text(out / "left_out.csv", csv_text(lines))
    for split, listed_sizes in sizes.items():
        if rows[split] and not sum(listed_sizes.values()):
            raise InputError(
                f"no pair of the split {split} is left: {reasons(left_out)}; "
                f"{out}/left_out.csv lists all"
            )
        write_json(out / split / "sizes.json", listed_sizes)
    patterns = {}
    for split, listed_sizes in sizes.items():
        if listed_sizes:
            patterns[split] = contract([f"{out / split / name}" for name in listed_sizes])
    train, val = ([row for row in sorted(rows[split]) if row not in bad] for split in SPLITS)
    by_image: dict[str, list[Pair]] = {}
    for row in val:
        by_image.setdefault(images[row], []).append(pairs[row])
    probed = list(sizes["train"]) if all(pairs[row].label for row in train) else []
    return Written(
        patterns=patterns,
        sizes={split: sum(listed_sizes.values()) for split, listed_sizes in sizes.items()},
        left_out=left_out,
        converted=Counter(converted.values()),
        data_sets=_write_evaluation(out, list(by_image.values()), labels, probed),
    )


def reasons(left_out: list[tuple[Pair, str]]) -> str:
    """Returns a message on how many pairs were skipped and why."""
    counts = Counter(reason.partition(" (")[0] for _, reason in left_out)
    return ", ".join(f"{count:,} × {reason}" for reason, count in counts.most_common())


def _shuffled_rows(are_held_out: list[bool], seed: int) -> dict[str, list[int]]:
    """Returns the rows of each split, shuffled by the seed."""

    def place(row: int) -> bytes:
        return hashlib.blake2b(f"{seed}\0{row}".encode(), digest_size=8).digest()

    rows = {split: [] for split in SPLITS}
    for row in sorted(range(len(are_held_out)), key=place):
        rows["val" if are_held_out[row] else "train"].append(row)
    return rows


def _shards_of(
    split: str,
    rows: Sequence[int],
    shard_size: int | None,
) -> list[tuple[str, int, Sequence[int]]]:
    """Returns the shards of a split: its name, the shard's number, and its rows."""
    wanted = math.ceil(len(rows) / NUM_SHARDS) if split == "train" else VALIDATION_SIZE
    size = shard_size or min(LARGEST, max(SMALLEST, wanted))
    starts = range(0, len(rows), size)
    return [(split, number, rows[start : start + size]) for number, start in enumerate(starts)]


def _write_shard(
    pairs: list[Pair], out: Path, labels: dict[str, int], shard: tuple[str, int, Sequence[int]]
) -> tuple[dict[int, str], dict[int, str]]:
    """Writes one shard; returns the skipped rows and the rows of converted images, with reasons."""
    split, number, rows = shard
    problems, converted = {}, {}
    with whole_file(out / split / f"{number:06}.tar") as file, TarWriter(file, mtime=0) as writer:
        for row in rows:
            pair = pairs[row]
            if not pair.caption:
                problems[row] = "no caption"
                continue
            try:
                image = stored_image(pair.image)
            except Exception as error:  # a broken file can raise any exception
                problems[row] = unreadable(error)
                continue
            texts = {"txt": pair.caption} | ({"long.txt": pair.long} if pair.long else {})
            label = {"cls": labels[pair.label]} if pair.label else {}
            writer.write({"__key__": f"{row:09}", image.extension: image.content, **texts, **label})
            if image.ignored:
                converted[row] = image.ignored
    return problems, converted


def _write_evaluation(
    out: Path,
    images: list[list[Pair]],
    labels: dict[str, int],
    train: list[str],
) -> list[str]:
    """Writes validation images in CLIP_benchmark's layout, and returns the names of the data sets.

    `images` are the pairs of each image. `retrieval` contains each image with all its captions, one
    per line. `labels` is written if there are classes: each image with the index of its first
    class, and links to the shards `train` for the linear probe.
    """
    if not images:
        return []
    captions = []
    for pairs in images:
        lines = [" ".join(pair.caption.split()) for pair in pairs]
        captions.append((pairs[0], "\n".join(lines)))
    retrieval, classes = out / "evaluation" / "retrieval", out / "evaluation" / "labels"
    write_data_set(retrieval, _samples(captions, "txt"), {"dataset_type.txt": "retrieval"})
    labelled = []
    for pairs in images:
        with_label = [pair for pair in pairs if pair.label]
        labelled += [(pair, labels[pair.label]) for pair in with_label[:1]]
    if not labelled:
        return ["retrieval"]
    names = {
        "classnames.txt": "\n".join(labels),
        "zeroshot_classification_templates.txt": "a photo of a {c}.",
    }
    write_data_set(classes, _samples(labelled, "cls"), names)
    if train:
        (classes / "train").mkdir()
        for number, name in enumerate(train):
            (classes / "train" / f"{number}.tar").symlink_to(Path("../../../train", name))
        write_text(classes / "train" / "nshards.txt", f"{len(train)}\n")
    return ["retrieval", "labels"]


def _samples(members: list[tuple[Pair, str | int]], extension: str) -> Iterator[dict]:
    """Yields a sample for each pair: its image, and a member with this extension."""
    for number, (pair, member) in enumerate(members):
        image = stored_image(pair.image)
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
