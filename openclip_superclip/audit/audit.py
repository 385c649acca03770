"""An audit: scores the pairs of a data set into a folder, writes the page and the summary, and keeps the best pairs."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ..checkpoints import HEAD_NAME, is_sharded
from ..checkpoints.checkpoint import Checkpoint, file_of_weights
from ..checkpoints.run_outputs import options_to_keep
from ..data.shards import is_remote
from ..data.tables import Columns
from ..environment import check_device, progress_file
from ..errors import InputError
from ..files import content_digest, file_identity, make_folder, read_json, write_json, write_text
from ..words.tagger import no_head_advice, open_checkpoint, read_model
from .keep import KEYS, check_table, select, write_kept
from .page import write_page
from .pairs import WHOLE, AuditedFiles, AuditedShards, Part, ReadPair, open_data, read_in_batches
from .scorer import PairScore, PairScorer
from .store import SCORES, ScoredPairs, UnfinishedScores, merge_scores, read_scores

RECORD, SCORES_FILE, PAGE, LEFT_OUT, SUMMARY = (
    "audit.json", "scores.jsonl", "report.html", "left_out.csv", "summary.json",
)  # fmt: skip
NUM_WORDS = 20  # in the summary


class AuditFolder:
    """OUT, which holds one audit: of one data set, by one model. Nothing is written before `claim`.

    Raises InputError if OUT holds something else, or an audit of other data, by another model or in other parts.

    Args:
        architecture: the model's name, if it was given.
        part: the part to score; None to score all, or to join parts that were scored before.
    """

    def __init__(
        self, out: Path, data: AuditedFiles | AuditedShards, model: Checkpoint, architecture: str | None,
        part: Part | None,
    ):  # fmt: skip
        self.out, self.scores = out, out / SCORES_FILE
        self.facts = {
            "data": data.given, "content of the data": data.digest(), "columns": list(getattr(data, "columns", [])),
            "model": str(model.path), "content of the model": model_digest(model, architecture),
        }  # fmt: skip
        make_folder(out, "--out")
        earlier = self._check()
        self.num_parts = self.facts["parts"] = part.of if part else earlier["parts"] if earlier else 1
        self._check()

    def claim(self) -> None:
        """Records what is audited; InputError if another call has claimed the folder meanwhile."""
        if self._check() is None:
            write_json(self.out / RECORD, self.facts)

    def _check(self) -> dict | None:
        """Returns the record of this audit, None if there is none yet; InputError for another audit's."""
        files, record = list(self.out.iterdir()), self.out / RECORD  # files first: scores come after their record
        if not record.exists():
            if any(not path.name.startswith(f"{RECORD}.") for path in files):
                raise InputError(f"--out: {self.out} is not empty and holds no audit: give another name")
            return None
        found = read_json(record, default={})
        if not isinstance(found.get("parts"), int):
            raise InputError(f"--out: {record} is damaged: give another --out, or remove {self.out}")
        for name in ("content of the data", "columns", "content of the model", "parts"):
            if name in self.facts and found.get(name) != self.facts[name]:
                shown = name.removeprefix("content of the ")  # the data and the model may have moved
                earlier, now = found.get(shown), self.facts[shown]
                change = f"{earlier}, and this is {now}" if earlier != now else f"{now} has changed since"
                raise InputError(
                    f"--out: {self.out} holds an audit with other {shown}: {change}: give another --out, or remove it"
                )
        return found

    def file_of(self, part: Part) -> Path:
        """Returns the file of a part's finished scores."""
        if part.of == 1:
            return self.scores
        return self.out / f"scores-{part.number:0{len(str(part.of))}}-of-{part.of}.jsonl"

    def is_finished(self, part: Part) -> bool:
        """Returns whether a part needs no more scoring."""
        return self.scores.exists() or self.file_of(part).exists()

    def join(self) -> None:
        """Joins the scores of the parts; InputError if one is unfinished."""
        if self.scores.exists():
            return
        parts = [Part(number, self.num_parts) for number in range(1, self.num_parts + 1)]
        missing = [f"--part {part.number}/{part.of}" for part in parts if not self.is_finished(part)]
        if missing:
            more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
            raise InputError(
                f"--out: {self.out} is an audit in {self.num_parts} parts; not finished: {', '.join(missing[:3])}{more}"
            )
        merge_scores([self.file_of(part) for part in parts], self.scores)


def model_digest(model: Checkpoint, architecture: str | None) -> str:
    """Returns an identity of a model: its weights and head, its configuration, the options of its run."""
    weights, options = file_of_weights(model.path), options_to_keep(model)
    name = architecture or str(options.pop("model", ""))
    files = sorted(model.path.glob("*.distcp")) if is_sharded(model.path) else [weights]
    if model.path.is_dir():
        files.append(weights.with_name(HEAD_NAME))
    if name.startswith("local-dir:"):
        files.append(Path(name.removeprefix("local-dir:")) / "open_clip_config.json")
        name = "local-dir:"  # which may have moved
    elif name.endswith(".json"):
        files.append(Path(name))
    digest = hashlib.sha256(json.dumps([name, options], sort_keys=True, default=str).encode())
    for file in files:
        if file.is_file():
            digest.update((file_identity(file) or content_digest(file)).encode())
    return digest.hexdigest()


class Options(NamedTuple):
    """How pairs are scored."""

    architecture: str | None  # the OpenCLIP model's name, if nothing beside the weights records it
    device: str | None  # None for the GPU if there is one
    batch_size: int
    threads: int  # that decode images


class Audit:
    """One audit: the data, the model and the folder of results.

    Everything is checked before the model is built: InputError for wrong data, for a model without the head that `by`
    needs, for a table whose rows --keep could not copy, and for a folder of another audit.

    Args:
        by: the score that sorts the pairs, one of SORTED_BY; None for the best one that the model has.
        part: the part to score; None for all.
        keep: the fraction of the pairs to keep.
        write_shards: whether to write the kept samples.
    """

    def __init__(
        self, data: str, columns: Columns, model: Path, out: Path, by: str | None, part: Part | None,
        keep: float | None, write_shards: bool, options: Options,
    ):  # fmt: skip
        self.options = options._replace(device=check_device(options.device))
        self.part, self.keep, self.write_shards = part, keep, write_shards
        self.checkpoint = read_model(model)
        has_head = bool(self.checkpoint.head())
        if not has_head and by not in (None, "clip-score"):
            advice = no_head_advice(self.checkpoint.path)
            raise InputError(
                f"--by {by} needs a class head, and {self.checkpoint.path} holds none ({advice}): give --by clip-score"
            )
        self.by = by or ("both" if has_head else "clip-score")
        self.data = open_data(data, columns)
        if part:
            self.data.check_part(part)
        is_files = isinstance(self.data, AuditedFiles)
        if write_shards and is_files:
            raise InputError(
                f"--write-shards is for shards, and DATA is {self.data.given}: --keep writes kept.csv of it"
            )
        if write_shards and any(map(is_remote, self.data.shards)):
            raise InputError("--write-shards copies files, and DATA holds URLs: --keep alone lists the kept keys")
        if keep is not None and is_files and self.data.is_table:
            check_table(self.data)
        self.folder = AuditFolder(out, self.data, self.checkpoint, options.architecture, part)

    def score(self) -> int:
        """Scores the pairs that no earlier call has scored, and returns how many pairs were scored before."""
        part = self.part or WHOLE
        if self.folder.is_finished(part) or (self.part is None and self.folder.num_parts > 1):
            return 0
        scorer = PairScorer(open_checkpoint(self.checkpoint, self.options.architecture, self.options.device))
        self.folder.claim()
        scores = UnfinishedScores(self.folder.file_of(part), self.options.batch_size)
        try:
            earlier = scores.num_lines
            for batch in self._batches(part, scores, scorer):
                scores.add([_record(read, score) for read, score in batch])
            scores.finish()
        finally:
            scores.close()
        return earlier

    def _batches(self, part: Part, scores: UnfinishedScores, scorer: PairScorer) -> Iterator[list]:
        """Yields the remaining pairs with their scores, and shows the progress on a terminal."""
        import torch

        pairs, known = self.data.pairs(part, scores.last), self.data.num_of(part)
        title = f"part {part.number}/{part.of}" if part.of > 1 else "pairs"
        bar = {"desc": title, "unit": " pairs", "file": progress_file()}
        with tqdm(total=known, initial=scores.num_lines, **bar) as progress:
            num_done = scores.num_lines
            preprocess, size = scorer.opened.preprocess(), self.options.batch_size
            for batch in read_in_batches(pairs, preprocess, size, self.options.threads):
                good = [read for read in batch if read.image is not None]
                found: list[PairScore] = []
                if good:
                    seen = scorer.see(torch.stack([read.image for read in good]))
                    found = scorer.score(seen, [read.pair.caption for read in good])
                each = iter(found)
                yield [(read, next(each) if read.image is not None else None) for read in batch]
                num_done += len(batch)
                progress.update(len(batch))
                if known is None:
                    progress.total = self.data.likely_num(part, num_done, batch[-1].pair.place)

    def finish(self, num_worst: int, unreadable_max: float) -> str:
        """Joins the parts, writes the page, the summary and the kept pairs, and returns the summary's text.

        Raises InputError if a part is unfinished, and if more than a fraction `unreadable_max` of the pairs or of the
        shards cannot be read, after writing all files.
        """
        out, by = self.folder.out, self.by
        self.folder.join()
        scored = ScoredPairs(self.folder.scores, of_shards=not isinstance(self.data, AuditedFiles))
        _write_left_out(out / LEFT_OUT, self.folder.scores)
        num_scored = len(scored.finite("clip_score"))
        if not len(scored):
            raise InputError(f"DATA: {self.data.given} holds no pair")
        if not num_scored:
            raise InputError(f"none of {len(scored):,} pairs could be scored: see {out / LEFT_OUT}")
        goodness = scored.goodness(by)
        num_sorted = int(np.isfinite(goodness).sum())
        if not num_sorted:
            raise InputError(
                f"--by {by}: no caption holds a word that the head has learned: give --by clip-score, or --by both"
            )
        write_page(out / PAGE, self.data, self.checkpoint.path, scored, self.folder.scores, goodness, by, num_worst)
        lines = _summary_lines(scored, num_scored, out / LEFT_OUT)
        if num_sorted < num_scored:
            lines.append(f"{num_scored - num_sorted:,} without a {by.replace('-', ' ')} are neither shown nor kept")
        summary = _summary(scored, num_scored)
        if self.keep is not None:
            kept = select(goodness, self.keep)
            files = write_kept(out, self.data, self.folder.scores, kept, self.write_shards)
            summary["kept"] = {"by": by, "share": self.keep, "pairs": int(kept.sum())}
            lines.append(f"kept: the best {kept.sum():,} by {by}: {', '.join(files)}")
        elif (out / KEYS).exists():  # of an earlier call
            earlier = read_json(out / SUMMARY, default={})
            summary |= {"kept": earlier["kept"]} if "kept" in earlier else {}
        write_json(out / SUMMARY, summary)
        lines.append(f"worst by {by} first: {out / PAGE}; every pair: {self.folder.scores}")
        num_shards = len(getattr(self.data, "shards", []))
        for found, of, problem in (
            (scored.num_unreadable, len(scored), "pairs have an image that cannot be read"),
            (scored.num_unreadable_shards, num_shards, "shards cannot be read completely"),
        ):
            if found > unreadable_max * of:
                raise InputError(
                    f"{found:,} of {of:,} {problem}, more than --unreadable-max {unreadable_max:g} allows; "
                    f"{out / LEFT_OUT} lists them"
                )
        return "\n".join(lines)


def _write_left_out(file: Path, scores: Path) -> None:
    """Writes a row with the problem for each pair that could not be scored."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["where", "key", "reason"])
    problems = (record for record in read_scores(scores) if "problem" in record)
    writer.writerows(sorted((record["where"], record["key"], record["problem"]) for record in problems))
    write_text(file, text.getvalue())


def _summary(scored: ScoredPairs, num_scored: int) -> dict:
    """Returns the numbers of an audit, for JSON."""
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
    """Returns the numbers of an audit, for people."""
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
    if scored.doubtful is not None and 0.005 < scored.doubtful < 0.9:
        lines.append(
            f"{scored.doubtful:.1%} of the pairs have support below 0: --keep {1 - scored.doubtful:.2f} is a starting "
            "point; report.html shows where other fractions cut"
        )
    return lines


def _record(read: ReadPair, score: PairScore | None) -> dict:
    """Returns a pair's line."""
    pair = read.pair
    record = {"place": pair.place, "where": pair.where, "key": pair.key, "caption": pair.caption}
    record |= {"uid": pair.uid} if pair.uid else {}
    if score is None:
        return record | {"problem": read.problem}
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
