"""Scores the pairs of a data set, writes the page, and copies the best pairs into a table or
shards."""

import contextlib
import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from tqdm import tqdm

from ..data.images import counts_text
from ..errors import InputError
from ..files import files_digest, make_folder, read_json, take_lock, write_json
from ..words.open_checkpoint import NO_HEAD, open_checkpoint, read_model
from .audit_page import write_page
from .kept import write_kept
from .pair_scores import PairScorer
from .reading import AuditedData, AuditedPair, read_in_batches
from .score_file import ScoredPairs, read_scores, record_of

PAGE = "report.html"


@dataclass
class Audit:
    """An audit of one data set with one model, in a folder. Writes no files before the model is
    built.

    Raises InputError if `by` needs a class head and the model has none, and if the folder contains
    another audit or other files.

    The pairs are sorted by `by`, one of SORTED_BY, or "" for the model's default. `architecture` is
    the name of the OpenCLIP model, if it is not recorded with the weights.
    """

    data: AuditedData
    model: Path
    out: Path
    by: str
    architecture: str | None
    device: str
    batch_size: int
    threads: int

    def __post_init__(self):
        self.scores = self.out / "scores.jsonl"
        self.record = self.out / "audit.json"
        if self.out.is_dir() and any(self.out.iterdir()) and not self.record.exists():
            raise InputError(
                f"--out: {self.out} is not empty and holds no audit: give another name"
            )
        self.checkpoint = read_model(self.model)
        self.has_head = bool(self.checkpoint.head())
        self.by = self.by or ("both" if self.has_head else "clip-score")
        if self.by != "clip-score" and not self.has_head:
            raise InputError(
                f"--by {self.by} needs a class head, and {self.checkpoint.path} has none "
                f"({NO_HEAD}): give --by clip-score"
            )
        self.facts = {
            "data": self.data.source,
            "columns": list(self.data.columns or ()),
            "model": str(self.checkpoint.path),
            "architecture": self.architecture,
            "files": files_digest([*self.data.files, self.checkpoint.path]),
        }
        if self.record.exists():
            earlier = read_json(self.record, flag="--out", advice="give another name")
            if earlier != self.facts:
                raise InputError(
                    f"--out: {self.out} holds another audit, of {earlier.get('data')} with "
                    f"{earlier.get('model')}, or these files have changed: give another name, "
                    "or remove it"
                )

    def score(self) -> None:
        """Scores the pairs that earlier calls have not scored.

        Raises InputError if the folder cannot be written, before the model is built.
        """
        make_folder(self.out)
        if self.scores.exists():
            return
        try:
            scorer = PairScorer(open_checkpoint(self.checkpoint, self.architecture, self.device))
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
            self._score_rest(scorer, file)
            os.fsync(file.fileno())
            os.replace(part, self.scores)

    def _score_rest(self, scorer: PairScorer, file: BinaryIO) -> None:
        """Appends the scores of the pairs that an interrupted call has not scored."""
        num_earlier = _keep_batches(file, self.batch_size)
        pairs = tqdm(
            itertools.islice(self.data.pairs(), num_earlier, None),
            total=self.data.num_pairs,
            initial=num_earlier,
            unit=" pairs",
            disable=None,
        )
        preprocess = scorer.opened.preprocess()
        for batch in read_in_batches(pairs, preprocess, self.batch_size, self.threads):
            for record in _score_batch(scorer, batch):
                line = f"{json.dumps(record, ensure_ascii=False)}\n"
                file.write(line.encode("utf-8", "replace"))
            file.flush()

    def finish(self, num_worst: int, keep: float | None) -> str:
        """Writes the page of the worst pairs and, given a fraction to keep, the kept pairs;
        returns the summary."""
        scored = ScoredPairs(self.scores, self.by)
        problems = counts_text(scored.problems)
        num_scored = len(scored.finite("clip_score"))
        if not num_scored:
            raise InputError(
                f"none of the pairs could be scored ({problems or 'DATA has none'}): see "
                f"{self.scores}"
            )
        if not len(scored.ranked):
            raise InputError(
                f"--by {self.by}: no caption contains a word that the head has learned: give "
                "--by clip-score or both"
            )
        write_page(self.out / PAGE, self.data, self.checkpoint.path, scored, num_worst)
        scores = f"{num_scored:,} pairs scored" if num_scored > 1 else "1 pair scored"
        lines = [f"{scores}; left out: {problems}" if problems else scores]
        if not self.has_head:
            lines.append("the model has no class head: only the CLIP score")
        if scored.warning:
            lines.append(f"warning: {scored.warning}")
        elif scored.suggestion:
            lines.append(scored.suggestion)
        num_left_out = num_scored - len(scored.ranked)
        if num_left_out:
            lines.append(f"{num_left_out:,} pairs without {self.by} are neither shown nor kept")
        if keep is not None:
            num_kept = max(1, round(keep * len(scored.ranked)))
            kept = np.zeros(len(scored.scores["clip_score"]), dtype=bool)
            kept[scored.ranked[:num_kept]] = True
            records = itertools.compress(read_scores(self.scores), kept)
            written = write_kept(self.out, self.data, kept, (record["place"] for record in records))
            lines.append(f"kept: the best {num_kept:,} by {self.by}: {written}")
        lines.append(f"worst pairs by {self.by}: {self.out / PAGE}; all pairs: {self.scores}")
        return "\n".join(lines)


def _lock(file: BinaryIO, path: Path) -> None:
    """Locks the scores until they are closed; InputError if another call is writing them."""
    if take_lock(file) is False:
        raise InputError(f"--out: another call is writing {path}: wait until it ends")


def _keep_batches(file: BinaryIO, batch_size: int) -> int:
    """Truncates the scores of an interrupted call after the last complete batch, and returns their
    number.

    The batches, and therefore the scores, are then the same as without the interruption.
    """
    num_lines = end = 0
    file.seek(0)
    while True:
        batch = list(itertools.islice(file, batch_size))
        if len(batch) < batch_size or not batch[-1].endswith(b"\n"):
            break
        num_lines += batch_size
        end += sum(map(len, batch))
    file.truncate(end)
    return num_lines


def _score_batch(scorer: PairScorer, batch: list[AuditedPair]) -> list[dict]:
    """Returns the records of the pairs of a batch, in order."""
    good = [pair for pair in batch if not pair.problem]
    scores = iter(())
    if good:
        outputs = scorer.see(torch.stack([pair.image for pair in good]))
        scores = iter(scorer.score(outputs, [pair.caption for pair in good]))
    return [record_of(pair, None if pair.problem else next(scores)) for pair in batch]
