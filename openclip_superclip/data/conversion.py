"""Pairs written as WebDataset shards: a training and a validation split, and data sets to evaluate on."""

import functools
import hashlib
import io
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm
from webdataset import TarWriter

from ..environment import require
from ..errors import InputError, listed
from ..files import make_folder, read_json, whole_file, write_json, write_text
from ..pages import csv_text
from .images import as_seen, is_deep, is_rotated, open_image, unreadable
from .shards import contract, is_empty, work_on
from .tables import Columns, is_table, rows_of

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
NUM_SHARDS = 32  # of the training split, enough to divide among workers and slices
SMALLEST, LARGEST = 16, 10_000  # pairs of a shard
VALIDATION_SIZE = 1000  # pairs per shard of the validation split
SPLITS = ("train", "val")
NO_CAPTION = "no caption"


class Keys(NamedTuple):
    """The columns of a table or data set, or the fields of a JSON, that make up a pair."""

    columns: Columns
    label: str = ""  # the class; "" if there is none
    long: str = ""  # a second, longer caption


class Pair(NamedTuple):
    """An image, by its file or row, and its texts; a missing caption is ""."""

    where: str  # for messages: "row 3"
    image: str
    caption: str
    label: str = ""
    long: str = ""


class Source(NamedTuple):
    """All pairs, and a function that returns an image file as bytes."""

    pairs: list[Pair]
    read: Callable[[str], bytes] = lambda image: Path(image).read_bytes()


def read_source(path: str, keys: Keys, images: Path | None) -> Source:
    """Returns the pairs of a table, a folder, COCO's JSON or a Hugging Face data set; InputError if there are none.

    Args:
        images: the folder of the images in COCO's JSON; by default the folder of the JSON.
    """
    place = Path(path)
    if is_table(path):
        source = Source(list(pairs_of_table(path, keys)))
    elif place.is_dir() and any((place / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        source = _of_data_set(place, keys)
    elif place.is_dir():
        source = Source(list(pairs_of_folder(place, keys)))
    elif path.endswith(".json"):
        source = Source(list(_of_coco(place, images or place.parent)))
    else:
        raise InputError(
            f"{path} is no table (.csv, .tsv), folder of images, COCO's .json or Hugging Face data set on disk"
            + ("" if place.exists() else ": there is no such file or folder")
        )
    if not source.pairs:
        raise InputError(f"{path} holds no pair: expected images with a .txt or .json of the same name beside them")
    return source


def pairs_of_table(path: str, keys: Keys, flag: str = "SOURCE") -> Iterator[Pair]:
    """Yields the rows of a table; InputError, which names `flag`, if it cannot be read."""
    for number, row in enumerate(rows_of(path, keys.columns, flag), 1):
        if number == 1:
            _check_keys({"--label-key": keys.label, "--long-key": keys.long}, path, row)
        yield Pair(f"row {number}", _word(row[keys.columns.image]), *_words(row, keys))


def pairs_of_folder(folder: Path, keys: Keys) -> Iterator[Pair]:
    """Yields the images below a folder that have a .txt or .json file of the same name."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        there = set(files)
        for name in sorted(files):
            stem, extension = os.path.splitext(name)
            if extension.lower() not in EXTENSIONS or not {f"{stem}.txt", f"{stem}.json"} & there:
                continue
            fields = read_json(Path(place, f"{stem}.json")) if f"{stem}.json" in there else {}
            pair = Pair(str(Path(place, name)), str(Path(place, name)), *_words(fields, keys))
            if f"{stem}.txt" in there:
                pair = pair._replace(caption=Path(place, f"{stem}.txt").read_text(errors="replace").strip())
            yield pair


def _of_coco(file: Path, images: Path) -> Iterator[Pair]:
    """Yields a pair for each caption of a JSON in COCO's format, with `images` and `annotations`."""
    content = read_json(file)
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        for number, one in enumerate(content["annotations"], 1):
            yield Pair(f"annotation {number}", str(images / names[one["image_id"]]), _word(one["caption"]))
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{file} is not as COCO's captions are ({type(error).__name__}: {error}): expected images with id and "
            "file_name, and annotations with image_id and caption"
        ) from error


def _of_data_set(folder: Path, keys: Keys) -> Source:
    require(str(folder), "data", "datasets")
    import datasets

    found = datasets.load_from_disk(str(folder))
    if isinstance(found, datasets.DatasetDict):
        raise InputError(f"{folder} holds the splits {listed(found)}: give one, such as {folder}/{next(iter(found))}")
    image = keys.columns.image
    named = {"--csv-img-key": image, "--csv-caption-key": keys.columns.caption}
    _check_keys(named | {"--label-key": keys.label, "--long-key": keys.long}, folder, found.column_names)
    images = found.select_columns([image])
    if isinstance(found.features[image], datasets.Image):
        images = images.cast_column(image, datasets.Image(decode=False))
    names = getattr(found.features[keys.label], "int2str", None) if keys.label else None

    def read(row: str) -> bytes:
        value = images[int(row)][image]
        if isinstance(value, dict):
            return value["bytes"] or Path(value["path"]).read_bytes()
        return value if isinstance(value, bytes) else Path(str(value)).read_bytes()

    def pair(number: int, row: dict) -> Pair:
        if names is not None and row[keys.label] is not None:
            row = {**row, keys.label: names(row[keys.label])}
        return Pair(f"row {number + 1}", str(number), *_words(row, keys))

    return Source([pair(number, row) for number, row in enumerate(found.remove_columns([image]))], read)


def _check_keys(keys: dict[str, str], source: str | Path, names: Sequence) -> None:
    for flag, key in keys.items():
        if key and key not in names:
            raise InputError(f"{flag}: {source} has no column '{key}'; its columns are {listed(names)}")


def _words(row: dict, keys: Keys) -> tuple[str, str, str]:
    """Returns the caption, the label and the long caption of a row; "" if missing."""
    return tuple(_word(row.get(key)) if key else "" for key in (keys.columns.caption, keys.label, keys.long))


def _word(value) -> str:
    return "" if value is None or is_empty(value) else str(value).strip()


def stored_image(data: bytes) -> dict[str, bytes]:
    """Returns an image's extension in a shard and its content.

    Images that OpenCLIP cannot read or would show incorrectly are re-encoded: other formats, more than eight bits per
    channel, or a rotation in the EXIF data. Raises Pillow's errors for a broken file.
    """
    with open_image(data) as image:
        image.load()
        is_jpeg = image.format in ("JPEG", "MPO")
        extension = "jpg" if is_jpeg else {"PNG": "png", "WEBP": "webp"}.get(image.format)
        if extension and not is_deep(image) and not is_rotated(image):
            return {extension: data}
        written = io.BytesIO()
        if is_jpeg:
            as_seen(image).save(written, "JPEG", quality=95, subsampling=0)
        else:
            as_seen(image).save(written, "PNG")
        return {"jpg" if is_jpeg else "png": written.getvalue()}


class Writing(NamedTuple):
    """How pairs become shards."""

    val_share: float  # fraction of the images for validation
    shard_size: int | None  # pairs per shard; by default so many that the training split has about NUM_SHARDS shards
    seed: int
    jobs: int


class Written(NamedTuple):
    """The written shards: pattern and number of pairs of each split, skipped pairs, and evaluation data sets."""

    patterns: dict[str, str]
    sizes: dict[str, int]
    left_out: list[tuple[Pair, str]]  # with the reason
    data_sets: list[str]


def write_pair_shards(source: Source, out: Path, writing: Writing) -> Written:
    """Writes OUT/train, OUT/val and OUT/evaluation.

    Call again with the same arguments to resume an interrupted call. All captions of an image are in the same split,
    chosen by a hash of the image's name. Pairs are shuffled over the shards. Pairs without a caption or with an
    unreadable image are skipped and listed in OUT/left_out.csv. Raises InputError if OUT contains shards of other
    pairs, or if a split is empty.
    """
    make_folder(out, "OUT")
    _claim(source, out, writing)
    shards = {(split, n): rows for split in SPLITS for n, rows in enumerate(_shards(source, writing, split))}
    done = out / "done"  # one record per shard, removed when all exist
    for folder in (done, *(out / split for split in SPLITS)):
        folder.mkdir(exist_ok=True)
    labels = {label: number for number, label in enumerate(sorted({p.label for p in source.pairs if p.label}))}
    write = functools.partial(_write_shard, source, out, labels)
    missing = [(place, rows) for place, rows in shards.items() if not _record(done, *place).exists()]
    with tqdm(total=sum(map(len, shards.values())), desc="pairs", unit=" pairs", disable=None) as progress:
        progress.update(progress.total - sum(len(rows) for _, rows in missing))
        is_parallel = writing.jobs > 1 and len(missing) > 1
        for num_pairs in work_on(write, missing, writing.jobs, "--jobs") if is_parallel else map(write, missing):
            progress.update(num_pairs)
    records = {place: json.loads(_record(done, *place).read_text()) for place in shards}
    rows = sorted((row, reason) for record in records.values() for row, reason in record["left_out"])
    left_out = [(source.pairs[row], reason) for row, reason in rows]
    lines = [("where", "picture", "reason"), *((pair.where, pair.image, reason) for pair, reason in left_out)]
    write_text(out / "left_out.csv", csv_text(lines))
    sizes = {
        split: {f"{n:06}.tar": record["num_pairs"] for (of, n), record in records.items() if of == split}
        for split in SPLITS
    }
    for split, written in sizes.items():
        if shards and not sum(written.values()) and (split == "train" or written):
            raise InputError(f"no pair of the split {split} is left: {reasons(left_out)}; {out}/left_out.csv lists all")
        write_json(out / split / "sizes.json", written)
    bad = {row for row, _ in rows}
    train, val = (
        [source.pairs[row] for row in sorted(itertools.chain(*_shards(source, writing, split))) if row not in bad]
        for split in SPLITS
    )
    data_sets = _write_evaluation(source, out, val, labels, sizes["train"] if all(pair.label for pair in train) else {})
    patterns = {split: contract([f"{out / split / name}" for name in names]) for split, names in sizes.items() if names}
    return Written(patterns, {split: sum(listed.values()) for split, listed in sizes.items()}, left_out, data_sets)


def reasons(left_out: list[tuple[Pair, str]]) -> str:
    """Returns a message on how many pairs were skipped and why."""
    counts = Counter(reason.partition(" (")[0] for _, reason in left_out)
    return ", ".join(f"{count:,} × {reason}" for reason, count in counts.most_common())


def _claim(source: Source, out: Path, writing: Writing) -> None:
    """Raises InputError if the folder contains shards of other pairs or of another split."""
    pairs = hashlib.sha256(json.dumps(source.pairs).encode()).hexdigest()
    facts = {"pairs": pairs, "val_share": writing.val_share, "shard_size": writing.shard_size, "seed": writing.seed}
    record = out / "shards.json"
    if record.exists():
        there = read_json(record, advice="remove the folder, or give another OUT")
        differ = [name for name, value in facts.items() if there.get(name) != value]
        if differ:
            raise InputError(f"{out} holds shards of other {', '.join(differ)}: remove it, or give another OUT")
    elif any(out.iterdir()):
        raise InputError(f"{out} is not empty and holds no shards of this command: give another OUT")
    else:
        write_json(record, facts)


def _shards(source: Source, writing: Writing, split: str) -> list[list[int]]:
    """Returns the indices of a split's pairs for each shard, shuffled by the seed."""
    rows = [n for n, pair in enumerate(source.pairs) if (_draw(pair.image) < writing.val_share) == (split == "val")]
    rows.sort(key=lambda row: hashlib.blake2b(f"{writing.seed}\0{row}".encode(), digest_size=8).digest())
    wanted = math.ceil(len(rows) / NUM_SHARDS) if split == "train" else VALIDATION_SIZE
    size = writing.shard_size or min(LARGEST, max(SMALLEST, wanted))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _draw(image: str) -> float:
    """Returns a number in [0, 1) from the image's name, so that added images do not change the split of others."""
    return int.from_bytes(hashlib.blake2b(image.encode(), digest_size=7).digest(), "big") / 2**56


def _record(done: Path, split: str, number: int) -> Path:
    return done / f"{split}-{number:06}.json"


def _write_shard(
    source: Source, out: Path, labels: dict[str, int], shard: tuple[tuple[str, int], Sequence[int]]
) -> int:
    """Writes one shard and its record, and returns its number of pairs, skipped ones included."""
    (split, number), rows = shard
    left_out, num_pairs = [], 0
    with whole_file(out / split / f"{number:06}.tar") as file, TarWriter(file, mtime=0) as writer:
        for row in rows:
            pair = source.pairs[row]
            try:
                image = stored_image(source.read(pair.image)) if pair.caption else {}
            except Exception as error:  # a broken file can raise any exception
                left_out.append((row, unreadable(error)))
                continue
            if not image:
                left_out.append((row, NO_CAPTION))
                continue
            words = {"txt": pair.caption} | ({"long.txt": pair.long} if pair.long else {})
            label = {"cls": labels[pair.label]} if pair.label else {}
            writer.write({"__key__": f"{row:09}", **image, **words, **label})
            num_pairs += 1
    write_json(_record(out / "done", split, number), {"num_pairs": num_pairs, "left_out": left_out})
    return len(rows)


def _write_evaluation(
    source: Source, out: Path, pairs: list[Pair], labels: dict[str, int], train: dict[str, int]
) -> list[str]:
    """Writes the validation pairs in CLIP_benchmark's layout, and returns the names of the data sets.

    `retrieval` contains each image once with all its captions, one per line. `labels` is written if there are classes:
    each image with its class index, and links to the training shards for the linear probe if all their pairs have a
    class.
    """
    by_image: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_image.setdefault(pair.image, []).append(pair)
    if not by_image:
        return []
    captions = {
        image: {"txt": "\n".join(" ".join(pair.caption.split()) for pair in of)} for image, of in by_image.items()
    }
    _write_data_set(out / "evaluation" / "retrieval", source, captions, {"dataset_type.txt": "retrieval"})
    if not labels:
        return ["retrieval"]
    classes = out / "evaluation" / "labels"
    labelled = {image: {"cls": labels[of[0].label]} for image, of in by_image.items() if of[0].label}
    names = {"classnames.txt": "\n".join(labels), "zeroshot_classification_templates.txt": "a photo of a {c}."}
    _write_data_set(classes, source, labelled, names)
    if train:
        (classes / "train").mkdir(exist_ok=True)
        for number, name in enumerate(train):
            link = classes / "train" / f"{number}.tar"
            if not link.is_symlink():
                link.symlink_to(os.path.relpath(out / "train" / name, link.parent))
        write_text(classes / "train" / "nshards.txt", f"{len(train)}\n")
    return ["retrieval", "labels"]


def _write_data_set(folder: Path, source: Source, members: dict[str, dict], texts: dict[str, str]) -> None:
    (folder / "test").mkdir(parents=True, exist_ok=True)
    for name, text in (texts | {"test/nshards.txt": "1"}).items():
        write_text(folder / name, f"{text}\n")
    with whole_file(folder / "test" / "0.tar") as file, TarWriter(file, mtime=0) as tar:
        for number, (image, words) in enumerate(members.items()):
            tar.write({"__key__": f"{number:09}", **stored_image(source.read(image)), **words})
