"""Scores the pairs of a data set, writes the page and the summary, and selects the best pairs."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..checkpoints.architecture import architecture_of
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.run_outputs import run_behind
from ..data.shards import is_remote
from ..environment import progress_file
from ..errors import InputError, listed
from ..files import make_folder, read_json, write_json, write_text
from ..pages import csv_text
from ..rules import Rule, check
from ..words.tagger import NO_HEAD, open_checkpoint
from .keep import KEYS, select, write_kept
from .page import write_page
from .pairs import WHOLE, AuditedFiles, AuditedPair, AuditedShards, Part, read_in_batches
from .scorer import PairScore, PairScorer
from .store import SCORES, ScoredPairs, UnfinishedScores, merge_scores, read_scores

RECORD, PAGE, LEFT_OUT, SUMMARY = "audit.json", "report.html", "left_out.csv", "summary.json"
NUM_WORDS = 20  # words in the summary
IDENTITY = {"content of the data": "data", "columns": "columns", "content of the model": "model", "parts": "parts"}


@dataclass
class Audit:
    """An audit of one data set with one model, in a folder. Writes no files before the model is built.

    Raises InputError if `by` needs a class head and the model has none, and if the folder contains other files or an
    audit of other data, with another model or in another number of parts.

    Args:
        by: the score that sorts the pairs, one of SORTED_BY; "" for the default, which depends on the model.
        part: the part to score; None to score all pairs, or to join parts that are already scored.
        keep: fraction of the pairs to keep; None to leave the files of kept pairs unchanged.
        write_shards: whether to write shards of the kept samples.
        architecture: name of the OpenCLIP model, if it is not recorded with the weights.
        threads: number of threads that decode images.
    """

    data: AuditedFiles | AuditedShards
    model: Checkpoint
    out: Path
    by: str
    part: Part | None
    keep: float | None
    write_shards: bool
    architecture: str | None
    device: str
    batch_size: int
    threads: int

    def __post_init__(self):
        self.has_head = bool(self.model.head())
        self.by = self.by or ("both" if self.has_head else "clip-score")
        check(RULES, self)
        self.scores = self.out / "scores.jsonl"
        self.facts = {
            "data": self.data.given, "content of the data": self.data.digest, "columns": list(self.data.columns),
            "model": str(self.model.path), "content of the model": _model_digest(self.model, self.architecture),
        }  # fmt: skip
        make_folder(self.out, "--out")
        earlier = self._check_folder()
        self.num_parts = self.facts["parts"] = self.part.of if self.part else (earlier or {"parts": 1})["parts"]
        self._check_folder()

    def _check_folder(self) -> dict | None:
        """Returns the record of this audit, or None if there is none yet. Raises InputError for another audit."""
        files, record = list(self.out.iterdir()), self.out / RECORD  # list first: scores are written after the record
        if not record.exists():
            if any(not path.name.startswith(f"{RECORD}.") for path in files):  # another process is writing the record
                raise InputError(f"--out: {self.out} is not empty and holds no audit: give another name")
            return None
        found = read_json(record, flag="--out", advice="give another name")
        for name, shown in IDENTITY.items():
            if name in self.facts and found.get(name) != self.facts[name]:
                raise InputError(
                    f"--out: {self.out} holds an audit with other {shown} ({found.get(shown)}, unless it has changed): "
                    "give another --out, or remove it"
                )
        return found

    def file_of(self, part: Part) -> Path:
        """Returns the path of a part's finished scores."""
        if part.of == 1:
            return self.scores
        return self.out / f"scores-{part.number:0{len(str(part.of))}}-of-{part.of}.jsonl"

    def score(self) -> int:
        """Scores the remaining pairs, and returns the number of pairs that earlier calls have scored."""
        part = self.part or WHOLE
        file = self.file_of(part)
        if self.scores.exists() or file.exists() or (self.part is None and self.num_parts > 1):
            return 0
        scorer = PairScorer(open_checkpoint(self.model, self.architecture, self.device))
        if self._check_folder() is None:
            write_json(self.out / RECORD, self.facts)
        with contextlib.closing(UnfinishedScores(file, self.batch_size)) as scores:
            earlier = scores.num_lines
            with tqdm(
                total=self.data.num_of(part), initial=earlier, unit=" pairs", file=progress_file(),
                desc=f"part {part.number}/{part.of}" if part.of > 1 else "pairs",
            ) as progress:  # fmt: skip
                for records in self._batches(part, scores.last, scorer):
                    scores.add(records)
                    progress.update(len(records))
            scores.finish()
        return earlier

    def _batches(self, part: Part, after: tuple[int, int], scorer: PairScorer) -> Iterator[list[dict]]:
        """Yields batches of records for the pairs of a part, starting after the given place."""
        preprocess, pairs = scorer.opened.preprocess(), self.data.pairs(part, after)
        for batch in read_in_batches(pairs, preprocess, self.batch_size, self.threads):
            good = [pair for pair in batch if not pair.problem]
            found: Iterator[PairScore] = iter(())
            if good:
                seen = scorer.see(torch.stack([pair.image for pair in good]))
                found = iter(scorer.score(seen, [pair.caption for pair in good]))
            yield [_record(pair, None if pair.problem else next(found)) for pair in batch]

    def join(self) -> None:
        """Joins the scores of the parts. Raises InputError if a part is unfinished."""
        if self.scores.exists():
            return
        files = [self.file_of(Part(number, self.num_parts)) for number in range(1, self.num_parts + 1)]
        missing = [f"--part {number}/{self.num_parts}" for number, file in enumerate(files, 1) if not file.exists()]
        if missing:
            raise InputError(
                f"--out: {self.out} is an audit in {self.num_parts} parts; not finished: {listed(missing, 3)}"
            )
        merge_scores(files, self.scores)

    def finish(self, num_worst: int, unreadable_max: float) -> str:
        """Joins the parts, writes the page, the summary and the kept pairs, and returns the summary as text.

        Args:
            num_worst: number of pairs on the page.
            unreadable_max: maximum fraction of pairs, and of shards, that may be unreadable. If it is exceeded, raises
                InputError after writing all files.
        """
        self.join()
        scored = ScoredPairs(self.scores, of_shards=isinstance(self.data, AuditedShards))
        left_out = self.out / LEFT_OUT
        problems = (record for record in read_scores(self.scores) if "problem" in record)
        rows = sorted((record["where"], record["key"], record["problem"]) for record in problems)
        write_text(left_out, csv_text([("where", "key", "reason"), *rows]))
        num_scored = len(scored.finite("clip_score"))
        if not num_scored:
            raise InputError(f"none of {len(scored):,} pairs could be scored: see {left_out}")
        goodness = scored.goodness(self.by)
        num_sorted = int(np.isfinite(goodness).sum())
        if not num_sorted:
            raise InputError(
                f"--by {self.by}: no caption holds a word that the head has learned: give --by clip-score, or --by both"
            )
        write_page(self.out / PAGE, self.data, self.model.path, scored, self.scores, goodness, self.by, num_worst)
        lines = _summary_lines(scored, num_scored, left_out)
        if num_sorted < num_scored:
            score = self.by.replace("-", " ")
            lines.append(f"{num_scored - num_sorted:,} without a {score} are neither shown nor kept")
        summary = _summary(scored, num_scored)
        if self.keep is not None:
            kept = select(goodness, self.keep)
            files = write_kept(self.out, self.data, self.scores, kept, self.write_shards)
            summary["kept"] = {"by": self.by, "share": self.keep, "pairs": int(kept.sum())}
            lines.append(f"kept: the best {kept.sum():,} by {self.by}: {', '.join(files)}")
        elif (self.out / KEYS).exists():  # written by an earlier call
            summary["kept"] = read_json(self.out / SUMMARY, default={}).get("kept")
        write_json(self.out / SUMMARY, summary)
        lines.append(f"worst by {self.by} first: {self.out / PAGE}; every pair: {self.scores}")
        for found, of, problem in (
            (scored.num_unreadable, len(scored), "pairs have an image that cannot be read"),
            (scored.num_unreadable_shards, self.data.num_units, "shards cannot be read completely"),
        ):
            if found > unreadable_max * of:
                raise InputError(
                    f"{found:,} of {of:,} {problem}, more than --unreadable-max {unreadable_max:g} allows; {left_out} "
                    "lists them"
                )
        return "\n".join(lines)


RULES = [
    Rule(
        f"--by {{by}} needs a class head, and {{model.path}} holds none ({NO_HEAD}): give --by clip-score",
        lambda audit: not audit.has_head and audit.by != "clip-score",
    ),
    Rule(
        "{data.given} holds {data.num_units:,} {data.unit}; expected at most as many parts (--part, processes of "
        "torchrun), found {part.of:,}",
        lambda audit: audit.part and audit.part.of > audit.data.num_units,
    ),
    Rule(
        "--write-shards is for shards, and DATA is {data.given}: --keep writes kept.csv of it",
        lambda audit: audit.write_shards and isinstance(audit.data, AuditedFiles),
    ),
    Rule(
        "--write-shards copies files, and DATA holds URLs: --keep alone lists the kept keys",
        lambda audit: audit.write_shards and any(map(is_remote, audit.data.shards)),
    ),
]


def _model_digest(model: Checkpoint, architecture: str | None) -> str:
    """Returns a hash of a model's architecture, weights, class head and use of IDF."""
    options = run_behind(model).options
    found = architecture_of(model.path, options, architecture, flag="--architecture")
    facts = [found.model_cfg, found.preprocess_cfg, options.get("superclip_idf") == "off"]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _summary(scored: ScoredPairs, num_scored: int) -> dict:
    """Returns the summary as a JSON-serializable dict."""
    found, rows = {}, scored.words.rows()
    for name in SCORES:
        values = scored.finite(name)
        if len(values):
            low, middle, high = np.percentile(values, (5, 50, 95)).tolist()
            found[name] = {"mean": float(values.mean()), "5 %": low, "median": middle, "95 %": high}
    return {
        "pairs": len(scored), "scored": num_scored, "left_out": dict(scored.problems), "scores": found,
        "words": {
            "captions": sum(row.num_captions for row in rows), "doubted": sum(row.num_doubted for row in rows),
        },
        "doubted_most": [
            {"word": row.word, "captions": row.num_captions, "doubted": row.num_doubted} for row in rows[:NUM_WORDS]
        ],
    }  # fmt: skip


def _summary_lines(scored: ScoredPairs, num_scored: int, left_out: Path) -> list[str]:
    """Returns the lines of the printed summary."""
    lines = [f"{num_scored:,} pair{'s' * (num_scored > 1)} scored"]
    if scored.problems:
        problems = ", ".join(f"{number:,} × {problem}" for problem, number in scored.problems.most_common())
        lines[0] += f"; left out: {problems}; {left_out} lists all"
    if not scored.has_head:
        return [*lines, "the model has no class head: CLIP score alone, no class loss and no words"]
    rows = [row for row in scored.words.rows()[:5] if row.num_doubted]
    if rows:
        named = ", ".join(f"{row.word} ({row.num_doubted:,} of {row.num_captions:,} captions)" for row in rows)
        lines.append(f"most often doubtful words: {named}")
    if scored.suggested_keep:
        lines.append(
            f"{scored.doubtful:.1%} of the pairs have support below 0: --keep {scored.suggested_keep:.2f} is a "
            "starting point; report.html shows where other fractions cut"
        )
    return lines


def _record(pair: AuditedPair, score: PairScore | None) -> dict:
    """Returns the record of a pair for scores.jsonl."""
    record = {"place": pair.place, "where": pair.where, "key": pair.key, "caption": pair.caption}
    record |= {"uid": pair.uid} if pair.uid else {}
    if score is None:
        return record | {"problem": pair.problem}
    for name in ("clip_score", "class_loss", "support"):
        value = getattr(score, name)
        record |= {} if value is None else {name: round(value, 6)}
    for name in ("words", "offered"):
        words = [
            {
                "word": word.word, "share": float(f"{word.share:.4g}"), "expected": float(f"{word.expected:.4g}"),
                "support": round(word.support, 4),
            }
            for word in getattr(score, name)
        ]  # fmt: skip
        record |= {name: words} if words else {}
    return record
