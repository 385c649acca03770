"""Pairs written as WebDataset shards: a training and a validation split, and data sets to evaluate on."""

import csv
import functools
import hashlib
import io
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm
from webdataset import TarWriter

from ..atomic_files import make_folder, whole_file, write_json, write_text
from ..errors import InputError
from .forked_workers import work_on
from .pair_sources import Pair, Source, as_png, picture_extension

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
