"""Pairs written as WebDataset shards: a training and a validation split, and data sets to evaluate on."""

import csv
import functools
import hashlib
import io
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm
from webdataset import TarWriter

from ..errors import InputError, reason
from ..files import make_folder, whole_file, write_json, write_text
from .shards import is_empty, work_on
from .tables import Columns, is_table, rows_of

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class Keys(NamedTuple):
    """The columns of a table or data set, or the fields of a JSON, that hold what belongs to a pair."""

    columns: Columns
    label: str = ""  # of a class; "" where there is none
    long: str = ""  # of a second, longer caption


class Pair(NamedTuple):
    """A picture, by its file or its row, and its words; a caption that is missing is ""."""

    where: str  # for people: "row 3"
    picture: str
    caption: str
    label: str = ""
    long: str = ""


class Source(NamedTuple):
    """All pairs, and what reads a picture's file, as bytes."""

    pairs: list[Pair]
    read: Callable[[str], bytes]


def read_source(path: str, keys: Keys, images: Path | None) -> Source:
    """Returns the pairs of a table, a folder, COCO's JSON or a Hugging Face data set; InputError where there are none.

    Args:
        images: the folder of the pictures that COCO's JSON names; beside it where it is None.
    """
    place = Path(path)
    if is_table(path):
        source = Source(list(pairs_of_table(path, keys)), _read_file)
    elif place.is_dir() and any((place / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        source = _of_data_set(place, keys)
    elif place.is_dir():
        source = Source(list(pairs_of_folder(place, keys)), _read_file)
    elif path.endswith(".json"):
        source = Source(list(_of_coco(place, images or place.parent)), _read_file)
    else:
        raise InputError(
            f"{path} is no table (.csv, .tsv), folder of pictures, COCO's .json or Hugging Face data set on disk"
            + ("" if place.exists() else ": there is no such file or folder")
        )
    if not source.pairs:
        raise InputError(f"{path} holds no pair: expected pictures with a .txt or .json of the same name beside them")
    return source


def _read_file(picture: str) -> bytes:
    return Path(picture).read_bytes()


def pairs_of_table(path: str, keys: Keys, flag: str = "SOURCE") -> Iterator[Pair]:
    """Yields the rows of a table; InputError, which names `flag`, where it cannot be read as it is meant."""
    columns = keys.columns
    wanted = {"--label-key": keys.label, "--long-key": keys.long}
    for number, row in enumerate(rows_of(path, columns, flag), 1):
        for flag, key in wanted.items():
            if key and key not in row:
                raise InputError(f"{flag}: {path} has no column '{key}'; its columns are {', '.join(map(str, row))}")
        yield Pair(f"row {number}", _word(row[columns.image]), _word(row[columns.caption]), *_others(row, keys))


def pairs_of_folder(folder: Path, keys: Keys) -> Iterator[Pair]:
    """Yields the pictures below a folder that have a .txt or .json beside them."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        there = set(files)
        for name in sorted(files):
            stem, extension = os.path.splitext(name)
            if extension.lower() not in PICTURES or not {f"{stem}.txt", f"{stem}.json"} & there:
                continue
            beside, fields = Path(place, stem), {}
            if f"{stem}.json" in there:
                fields = _object(beside.with_name(f"{stem}.json"))
            caption = _word(fields.get(keys.columns.caption))
            if f"{stem}.txt" in there:
                caption = beside.with_name(f"{stem}.txt").read_text(errors="replace").strip()
            picture = str(Path(place, name))
            yield Pair(picture, picture, caption, *_others(fields, keys))


def _of_coco(file: Path, images: Path) -> Iterator[Pair]:
    """Yields a pair a caption of a JSON with `images` and `annotations`, as COCO's captions are."""
    content = _object(file)
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
    from ..environment import require

    require(str(folder), "data", "datasets")
    import datasets

    found = datasets.load_from_disk(str(folder))
    if isinstance(found, datasets.DatasetDict):
        raise InputError(
            f"{folder} holds the splits {', '.join(found)}: give one, such as {folder}/{next(iter(found))}"
        )
    columns = keys.columns
    named = {
        "--csv-img-key": columns.image, "--csv-caption-key": columns.caption, "--label-key": keys.label,
        "--long-key": keys.long,
    }  # fmt: skip
    for flag, key in named.items():
        if key and key not in found.column_names:
            raise InputError(f"{flag}: {folder} has no column '{key}'; its columns are {', '.join(found.column_names)}")
    pictures = found.select_columns([columns.image])
    if isinstance(found.features[columns.image], datasets.Image):
        pictures = pictures.cast_column(columns.image, datasets.Image(decode=False))
    names = getattr(found.features[keys.label], "int2str", None) if keys.label else None
    words = found.remove_columns([columns.image])

    def read(row: str) -> bytes:
        value = pictures[int(row)][columns.image]
        if isinstance(value, dict):
            return value["bytes"] or Path(value["path"]).read_bytes()
        return value if isinstance(value, bytes) else Path(str(value)).read_bytes()

    def pair(number: int, row: dict) -> Pair:
        if names is not None and row[keys.label] is not None:
            row = {**row, keys.label: names(row[keys.label])}
        return Pair(f"row {number + 1}", str(number), _word(row[columns.caption]), *_others(row, keys))

    return Source([pair(number, row) for number, row in enumerate(words)], read)


def _others(row: dict, keys: Keys) -> tuple[str, str]:
    return _word(row.get(keys.label)) if keys.label else "", _word(row.get(keys.long)) if keys.long else ""


def _word(value) -> str:
    """Returns a cell as text, "" where it is empty."""
    return "" if value is None or is_empty(value) else str(value).strip()


def _object(file: Path) -> dict:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is no readable JSON ({reason(error)})") from error
    return content if isinstance(content, dict) else {}


def picture_extension(data: bytes) -> str:
    """Returns the extension under which a shard holds a picture's file, "" where OpenCLIP reads no such file.

    Raises whatever Pillow raises for a file that is no whole picture.
    """
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}.get(image.format, "")


def as_png(data: bytes) -> bytes:
    """Returns a picture of another kind, the first frame of a film, as a PNG."""
    from PIL import Image

    written = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGBA" if "transparency" in image.info or image.mode == "RGBA" else "RGB").save(written, "PNG")
    return written.getvalue()


NUM_SHARDS = 32  # of the training split, so that workers and slices share them out


SMALLEST, LARGEST = 16, 10_000  # pairs of a shard


VALIDATION_SIZE = 1000  # pairs of a shard of the validation split


SPLITS = ("train", "val")


NO_CAPTION = "no caption"


class Writing(NamedTuple):
    """How pairs become shards."""

    val_share: float  # of the pictures
    shard_size: int | None  # pairs; None: what makes NUM_SHARDS of the training split, within bounds
    seed: int
    jobs: int


class Written(NamedTuple):
    """What was written: for each split its pattern and its pairs; the pairs left out; the data sets to evaluate on."""

    patterns: dict[str, str]
    sizes: dict[str, int]
    left_out: list[tuple[Pair, str]]  # with the reason
    data_sets: list[str]


def write_pair_shards(source: Source, out: Path, writing: Writing) -> Written:
    """Writes OUT/train, OUT/val and OUT/evaluation; a call that was stopped resumes with the same arguments.

    A picture with all its captions is in one split, drawn by a hash of its name; a shard's pairs are a sample of all.
    A pair without a caption or with a picture that cannot be decoded is left out and listed in OUT/left_out.csv. Raises
    InputError where OUT holds shards of other pairs, and where nothing is left of a split.
    """
    make_folder(out, "OUT")
    _claim(source, out, writing)
    shards = {(split, n): rows for split in SPLITS for n, rows in enumerate(_shards(source, writing, split))}
    done = out / "done"  # a record a shard, until all are there
    done.mkdir(exist_ok=True)
    for split in SPLITS:
        (out / split).mkdir(exist_ok=True)
    missing = {place: rows for place, rows in shards.items() if not _record(done, *place).exists()}
    labels = {label: number for number, label in enumerate(sorted({p.label for p in source.pairs if p.label}))}
    write = functools.partial(_write_shard, source, out, labels)
    with tqdm(total=sum(map(len, shards.values())), desc="pairs", unit=" pairs") as progress:
        progress.update(progress.total - sum(map(len, missing.values())))
        for num_pairs in _in_parallel(write, list(missing.items()), writing.jobs):
            progress.update(num_pairs)
    records = {place: json.loads(_record(done, *place).read_text()) for place in shards}
    left_out = [(source.pairs[row], reason) for record in records.values() for row, reason in record["left_out"]]
    sizes = {
        split: {f"{n:06}.tar": record["num_pairs"] for (of, n), record in records.items() if of == split}
        for split in SPLITS
    }
    _list_left_out(out / "left_out.csv", left_out)
    for split, listed in sizes.items():
        if shards and not sum(listed.values()) and (split == "train" or listed):
            raise InputError(
                f"no pair of the split {split} is left: {_reasons(left_out)}; {out}/left_out.csv lists all"
            )
        write_json(out / split / "sizes.json", listed)
    bad = {pair for pair, _ in left_out}
    validation = sorted(row for (split, _), rows in shards.items() if split == "val" for row in rows)
    kept = [source.pairs[row] for row in validation]
    trained = [source.pairs[row] for (split, _), rows in shards.items() if split == "train" for row in rows]
    probed = sizes["train"] if all(pair.label for pair in trained if pair not in bad) else {}
    data_sets = _write_evaluation(source, out, [pair for pair in kept if pair not in bad], labels, probed)
    return Written(
        {split: _pattern(out / split, len(listed)) for split, listed in sizes.items() if listed},
        {split: sum(listed.values()) for split, listed in sizes.items()}, left_out, data_sets,
    )  # fmt: skip


def told_reasons(written: Written) -> str:
    """Returns how many pairs were left out and why, for people; "" where none was."""
    return _reasons(written.left_out)


def _reasons(left_out: list[tuple[Pair, str]]) -> str:
    counts = Counter(reason.partition(" (")[0] for _, reason in left_out)
    return ", ".join(f"{count:,} × {reason}" for reason, count in counts.most_common())


def _claim(source: Source, out: Path, writing: Writing) -> None:
    """Raises InputError where the folder holds shards of other pairs or of another split."""
    pairs = hashlib.sha256(json.dumps(source.pairs).encode()).hexdigest()
    facts = {"pairs": pairs, "val_share": writing.val_share, "shard_size": writing.shard_size, "seed": writing.seed}
    record = out / "shards.json"
    if record.exists():
        there = json.loads(record.read_text())
        differ = [name for name, value in facts.items() if there.get(name) != value]
        if differ:
            raise InputError(f"{out} holds shards of other {', '.join(differ)}: remove it, or give another OUT")
        return
    if any(out.iterdir()):
        raise InputError(f"{out} is not empty and holds no shards of this command: give another OUT")
    write_json(record, facts)


def _shards(source: Source, writing: Writing, split: str) -> list[list[int]]:
    """Returns the pairs of a split by their numbers, in an order that depends on the seed alone, shard by shard."""
    rows = [n for n, pair in enumerate(source.pairs) if (_draw(pair.picture) < writing.val_share) == (split == "val")]
    rows.sort(key=lambda row: hashlib.blake2b(f"{writing.seed}\0{row}".encode(), digest_size=8).digest())
    wanted = math.ceil(len(rows) / NUM_SHARDS) if split == "train" else VALIDATION_SIZE
    size = writing.shard_size or min(LARGEST, max(SMALLEST, wanted))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _draw(picture: str) -> float:
    """Returns a number in [0, 1) that the picture's name decides, so that more pictures change no split."""
    return int.from_bytes(hashlib.blake2b(picture.encode(), digest_size=7).digest(), "big") / 2**56


def _record(done: Path, split: str, number: int) -> Path:
    return done / f"{split}-{number:06}.json"


def _in_parallel(write, shards: list, jobs: int):
    if jobs == 1 or len(shards) < 2:
        yield from map(write, shards)
        return
    yield from work_on(write, shards, jobs, "--jobs")


def _write_shard(
    source: Source, out: Path, labels: dict[str, int], shard: tuple[tuple[str, int], Sequence[int]]
) -> int:
    """Writes one shard and its record, and returns how many pairs it was to hold."""
    (split, number), rows = shard
    left_out, num_pairs = [], 0
    with whole_file(out / split / f"{number:06}.tar") as file, TarWriter(file, mtime=0) as writer:
        for row in rows:
            sample = _sample(source, source.pairs[row], labels)
            if isinstance(sample, str):
                left_out.append((row, sample))
                continue
            writer.write({"__key__": f"{row:09}", **sample})
            num_pairs += 1
    write_json(_record(out / "done", split, number), {"num_pairs": num_pairs, "left_out": left_out})
    return len(rows)


def _sample(source: Source, pair: Pair, labels: dict[str, int]) -> dict | str:
    """Returns the members of a pair, or why it is left out."""
    if not pair.caption:
        return NO_CAPTION
    picture = _picture(source, pair)
    if isinstance(picture, str):
        return picture
    more = {"long.txt": pair.long} if pair.long else {}
    if pair.label:
        more["cls"] = labels[pair.label]
    return {**picture, "txt": pair.caption, **more}


def _picture(source: Source, pair: Pair) -> dict | str:
    """Returns a picture's file under its extension, or why it is left out."""
    try:
        data = source.read(pair.picture)
        extension = picture_extension(data)
        return {extension: data} if extension else {"png": as_png(data)}
    except FileNotFoundError:
        return "no such file"
    except Exception as error:  # of a broken file Pillow's decoders raise anything
        return f"no readable picture ({' '.join(str(error).split()) or type(error).__name__})"


def _list_left_out(file: Path, left_out: list[tuple[Pair, str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["where", "picture", "reason"])
    writer.writerows((pair.where, pair.picture, reason) for pair, reason in left_out)
    write_text(file, text.getvalue())


def _pattern(folder: Path, num_shards: int) -> str:
    return f"{folder}/{{000000..{num_shards - 1:06}}}.tar" if num_shards > 1 else f"{folder}/000000.tar"


def _write_evaluation(
    source: Source, out: Path, pairs: list[Pair], labels: dict[str, int], train: dict[str, int]
) -> list[str]:
    """Writes the validation pairs in CLIP_benchmark's layout, and returns the names of the data sets.

    `retrieval` holds a picture once with all its captions, a line each; `labels`, where there are some, a picture with
    the number of its class, and leads to the training shards for the linear probe, where all their pairs have a class.
    """
    by_picture: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_picture.setdefault(pair.picture, []).append(pair)
    if not by_picture:
        return []
    retrieval, classes = out / "evaluation" / "retrieval", out / "evaluation" / "labels"
    captions = {
        picture: {"txt": "\n".join(" ".join(pair.caption.split()) for pair in of)} for picture, of in by_picture.items()
    }
    _write_data_set(retrieval, source, by_picture, captions, {"dataset_type.txt": "retrieval"})
    if not labels:
        return ["retrieval"]
    labelled = {picture: {"cls": labels[of[0].label]} for picture, of in by_picture.items() if of[0].label}
    names = {"classnames.txt": "\n".join(labels), "zeroshot_classification_templates.txt": "a photo of a {c}."}
    _write_data_set(classes, source, by_picture, labelled, names)
    if not train:
        return ["retrieval", "labels"]
    (classes / "train").mkdir(exist_ok=True)
    for number, name in enumerate(train):
        link = classes / "train" / f"{number}.tar"
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(out / "train" / name, link.parent))
    write_text(classes / "train" / "nshards.txt", f"{len(train)}\n")
    return ["retrieval", "labels"]


def _write_data_set(folder: Path, source: Source, by_picture: dict, members: dict[str, dict], texts: dict) -> None:
    (folder / "test").mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, f"{text}\n")
    with whole_file(folder / "test" / "0.tar") as file, TarWriter(file, mtime=0) as tar:
        for number, (picture, words) in enumerate(members.items()):
            tar.write({"__key__": f"{number:09}", **_picture(source, by_picture[picture][0]), **words})
    write_text(folder / "test" / "nshards.txt", "1\n")
