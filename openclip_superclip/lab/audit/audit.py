"""Scores the pairs of a data set, writes the page, and copies the best pairs into a table or
shards."""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas
import torch
from tqdm import tqdm

from ...checkpoints.weights import Checkpoint
from ...data.tables import ROWS_AT_ONCE
from ...data.tar_shards import contract, numbered_members
from ...errors import InputError
from ...files import keep_private, make_folder, read_json, whole_file, whole_output, write_json
from ..words.tagger import NO_HEAD, open_checkpoint
from .page import write_page
from .reading import AuditedData, AuditedPair, read_in_batches
from .scores import PairScore, PairScorer, ScoredPairs, read_scores

RECORD, PAGE = "audit.json", "report.html"


@dataclass
class Audit:
    """An audit of one data set with one model, in a folder. Writes no files before the model is
    built.

    Raises InputError if `by` needs a class head and the model has none, and if the folder contains
    other files or another audit.

    The pairs are sorted by `by`, one of SORTED_BY, or "" for the model's default. `architecture` is
    the name of the OpenCLIP model, if it is not recorded with the weights.
    """

    data: AuditedData
    model: Checkpoint
    out: Path
    by: str
    architecture: str | None
    device: str
    batch_size: int
    threads: int

    def __post_init__(self):
        self.has_head = bool(self.model.head())
        self.by = self.by or ("both" if self.has_head else "clip-score")
        if self.by != "clip-score" and not self.has_head:
            raise InputError(
                f"--by {self.by} needs a class head, and {self.model.path} has none "
                f"({NO_HEAD}): give --by clip-score"
            )
        self.scores, self.record = self.out / "scores.jsonl", self.out / RECORD
        columns = list(self.data.columns or ())
        self.facts = {
            "data": self.data.given,
            "columns": columns,
            "model": str(self.model.path),
            "architecture": self.architecture,
            "files": _digest([*self.data.files, self.model.path]),
        }
        check_is_free(self.out)
        make_folder(self.out, "--out")
        if self.record.exists():
            earlier = read_json(self.record, flag="--out", advice="give another name")
            if earlier != self.facts:
                raise InputError(
                    f"--out: {self.out} holds another audit, of {earlier.get('data')} with "
                    f"{earlier.get('model')}, or these files have changed: give another name, "
                    "or remove it"
                )

    def score(self) -> None:
        """Scores the pairs that earlier calls have not scored."""
        if self.scores.exists():
            return
        try:
            scorer = PairScorer(open_checkpoint(self.model, self.architecture, self.device))
        except InputError:
            with contextlib.suppress(OSError):  # it is not empty
                self.out.rmdir()
            raise
        write_json(self.record, self.facts)
        part = self.scores.with_suffix(".jsonl.part")
        with open(part, "a+b") as file:
            _lock(file, part)
            if self.scores.exists():  # another call has finished while this one built the model
                return
            num_earlier = _keep_batches(file, self.batch_size)
            with tqdm(
                total=self.data.num_pairs, initial=num_earlier, unit=" pairs", disable=None
            ) as progress:
                pairs, preprocess = (
                    itertools.islice(self.data.pairs(), num_earlier, None),
                    scorer.opened.preprocess(),
                )
                for batch in read_in_batches(pairs, preprocess, self.batch_size, self.threads):
                    good, found = [pair for pair in batch if not pair.problem], iter(())
                    if good:
                        seen = scorer.see(torch.stack([pair.image for pair in good]))
                        found = iter(scorer.score(seen, [pair.caption for pair in good]))
                    records = [
                        _record(pair, None if pair.problem else next(found)) for pair in batch
                    ]
                    lines = "".join(
                        f"{json.dumps(record, ensure_ascii=False)}\n" for record in records
                    )
                    file.write(lines.encode("utf-8", "replace"))
                    file.flush()
                    progress.update(len(records))
            os.fsync(file.fileno())
            os.replace(part, self.scores)

    def finish(self, num_worst: int, keep: float | None) -> str:
        """Writes the page of the worst pairs and, given a fraction to keep, the kept pairs;
        returns the summary."""
        scored = ScoredPairs(self.scores)
        problems = ", ".join(
            f"{number:,} × {problem}" for problem, number in scored.problems.most_common()
        )
        num_scored = len(scored.finite("clip_score"))
        if not num_scored:
            raise InputError(
                f"none of the pairs could be scored ({problems or 'DATA has none'}): see "
                f"{self.scores}"
            )
        goodness = scored.goodness(self.by)
        num_sorted = int(np.isfinite(goodness).sum())
        if not num_sorted:
            raise InputError(
                f"--by {self.by}: no caption contains a word that the head has learned: give "
                "--by clip-score or both"
            )
        write_page(
            self.out / PAGE,
            self.data,
            self.model.path,
            scored,
            self.scores,
            goodness,
            self.by,
            num_worst,
        )
        lines = [
            f"{num_scored:,} pair{'s' * (num_scored > 1)} scored"
            + f"; left out: {problems}" * bool(problems)
        ]
        if not self.has_head:
            lines.append("the model has no class head: only the CLIP score")
        if scored.warning:
            lines.append(f"warning: {scored.warning}")
        elif scored.suggestion:
            lines.append(scored.suggestion)
        if num_sorted < num_scored:
            lines.append(
                f"{num_scored - num_sorted:,} pairs without {self.by} are neither shown nor kept"
            )
        if keep is not None:
            kept = select(goodness, keep)
            places = (
                record["place"] for record in itertools.compress(read_scores(self.scores), kept)
            )
            written = write_kept(self.out, self.data, kept, places)
            lines.append(f"kept: the best {kept.sum():,} by {self.by}: {written}")
        lines.append(f"worst pairs by {self.by}: {self.out / PAGE}; all pairs: {self.scores}")
        return "\n".join(lines)


def check_is_free(out: Path) -> None:
    """Raises InputError if a folder contains other files than an audit's."""
    if out.is_dir() and any(out.iterdir()) and not (out / RECORD).exists():
        raise InputError(f"--out: {out} is not empty and holds no audit: give another name")


def _digest(paths: list[str | Path]) -> str:
    """Returns a digest of the names, sizes and modification times of files, and of the files in
    folders."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            state = file.stat() if file.exists() else None
            digest.update(
                f"{file}\0{state and (state.st_size, state.st_mtime_ns)}\0".encode(
                    "utf-8", "replace"
                )
            )
    return digest.hexdigest()


def _lock(file: BinaryIO, path: Path) -> None:
    """Locks the scores until they are closed; InputError if another call is writing them."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"--out: another call is writing {path}: wait until it ends") from None
    except OSError:  # a file system without locks
        pass


def _keep_batches(file: BinaryIO, batch_size: int) -> int:
    """Truncates the scores of an interrupted call after the last complete batch, and returns their
    number.

    The batches, and therefore the scores, are then the same as without the interruption.
    """
    num_lines = end = 0
    file.seek(0)
    while len(batch := list(itertools.islice(file, batch_size))) == batch_size and batch[
        -1
    ].endswith(b"\n"):
        num_lines, end = num_lines + batch_size, end + sum(map(len, batch))
    file.truncate(end)
    return num_lines


def _record(pair: AuditedPair, score: PairScore | None) -> dict:
    """Returns the record of a pair for scores.jsonl."""
    record = {"place": pair.place, "where": pair.where, "key": pair.key, "caption": pair.caption}
    if score is None:
        return record | {"problem": pair.problem}
    for name in ("clip_score", "class_loss", "support"):
        value = getattr(score, name)
        record |= {} if value is None else {name: round(value, 6)}
    for name in ("words", "offered"):
        words = [
            {
                "word": word.word,
                "share": float(f"{word.share:.4g}"),
                "expected": float(f"{word.expected:.4g}"),
                "support": round(word.support, 4),
            }
            for word in getattr(score, name)
        ]
        record |= {name: words} if words else {}
    return record


def select(goodness: np.ndarray, fraction: float) -> np.ndarray:
    """Returns a mask of the pairs to keep, bool [N]: the best `fraction` of the scored pairs, and
    at least one.

    Ties are resolved in favour of earlier pairs.
    """
    num_scored = int(np.isfinite(goodness).sum())
    kept = np.zeros(len(goodness), dtype=bool)
    kept[np.argsort(-goodness, kind="stable")[: max(1, round(fraction * num_scored))]] = True
    return kept


def write_kept(
    out: Path, data: AuditedData, kept: np.ndarray, places: Iterable[Sequence[int]]
) -> str:
    """Writes the kept pairs to `out`, replacing those of an earlier call, and returns the table or
    pattern of shards.

    `kept` is bool [N], and `places` are (shard, sample) of each kept pair.
    """
    if data.columns is None:
        return _write_shards(out / "kept", data, places)
    # of the copy, too
    table, separator = out / f"kept{Path(data.given).suffix}", data.columns.separator
    as_text = {"sep": separator, "dtype": str, "keep_default_na": False, "chunksize": ROWS_AT_ONCE}
    with whole_file(table) as file, pandas.read_csv(data.given, **as_text) as chunks:
        keep_private(Path(file.name), Path(data.given))
        for number, rows in enumerate(chunks):
            chosen = rows[kept[number * ROWS_AT_ONCE :][: len(rows)]]
            text = chosen.to_csv(
                sep=separator if len(separator) == 1 else "\t", index=False, header=number == 0
            )
            file.write(text.encode("utf-8", "replace"))
    return f"{table}, separated by tabs" if len(separator) > 1 else str(table)


def _write_shards(out: Path, data: AuditedData, places: Iterable[Sequence[int]]) -> str:
    """Copies the kept samples unchanged into shards of the same names, and returns their brace
    pattern."""
    there = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    others = [name for name in there if name != "sizes.json" and not name.endswith(".tar")]
    if others:
        raise InputError(
            f"--keep: {out} contains {others[0]}, which it would delete; move it elsewhere"
        )
    sizes: dict[str, int] = {}
    names = list(map(os.path.basename, data.files))
    if len(set(names)) < len(names):
        names = [f"{number:06}.tar" for number in range(len(names))]
    with whole_output(out, overwrite=True) as folder:
        folder.mkdir()
        for index, group in itertools.groupby(places, lambda place: place[0]):
            numbers, name = {number for _, number in group}, names[index]
            (folder / name).touch()
            keep_private(folder / name, Path(data.files[index]))
            with (
                tarfile.open(data.files[index]) as source,
                tarfile.open(folder / name, "w", format=tarfile.GNU_FORMAT) as target,
                # damage after the last kept sample
                contextlib.suppress(EOFError, tarfile.TarError),
            ):
                for number, _, _, member in numbered_members(source):
                    if number in numbers:
                        target.addfile(member, source.extractfile(member))
                        target.members.clear()
            sizes[name] = len(numbers)
        write_json(folder / "sizes.json", sizes)
    return contract([str(out / name) for name in sizes])
