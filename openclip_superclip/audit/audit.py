"""An audit: scores the pairs of a data set into a folder, and shows and keeps what the scores say."""

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
from ..files import content_digest, file_identity, make_folder, write_json, write_text
from ..words.tagger import no_head_advice, open_checkpoint, read_model
from .keep import KEYS, check_table, choose, write_kept
from .page import against, write_page
from .pairs import WHOLE, AuditedFiles, AuditedShards, Part, ReadPair, open_data, read_in_batches
from .scorer import PairScore, PairScorer
from .store import SCORES, ScoredPairs, UnfinishedScores, merge_scores, read_scores

RECORD, SCORES_FILE = "audit.json", "scores.jsonl"


class AuditFolder:
    """OUT, which holds one audit: of one data set, by one model. Nothing is written before `claim`.

    Raises InputError where OUT holds something else, or an audit of other data, by another model or in other parts.

    Args:
        architecture: the model's name, where it was given.
        part: of this call; None where it is to score all, or to join parts that others have scored.
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
        there = self._check()
        self.num_parts = self.facts["parts"] = part.of if part else there["parts"] if there else 1
        self._check()

    def claim(self) -> None:
        """Writes what the folder is of; InputError where another call has meanwhile."""
        if self._check() is None:
            write_json(self.out / RECORD, self.facts)

    def _check(self) -> dict | None:
        """Returns the record of the audit that is there, None where none is; InputError for that of another."""
        files = list(self.out.iterdir())  # first: scores come after their record
        record = self.out / RECORD
        if not record.exists():
            if any(not path.name.startswith(f"{RECORD}.") for path in files):
                raise InputError(f"--out: {self.out} is not empty and holds no audit: give another name")
            return None
        try:
            there = json.loads(record.read_text())
            assert isinstance(there["parts"], int)
        except (OSError, ValueError, LookupError, TypeError, AssertionError):
            raise InputError(f"--out: {record} is damaged: give another --out, or remove {self.out}") from None
        for name in ("content of the data", "columns", "content of the model", "parts"):
            if name in self.facts and there.get(name) != self.facts[name]:
                shown = name.removeprefix("content of the ")  # the data and the model may have moved
                found, given = there.get(shown), self.facts[shown]
                told = f"{found}, and this is {given}" if found != given else f"{given} has changed since"
                raise InputError(
                    f"--out: {self.out} holds an audit with other {shown}: {told}: give another --out, or remove it"
                )
        return there

    def file_of(self, part: Part) -> Path:
        """Returns the file of a part's scores, once it is finished."""
        if part.of == 1:
            return self.scores
        return self.out / f"scores-{part.number:0{len(str(part.of))}}-of-{part.of}.jsonl"

    def is_finished(self, part: Part) -> bool:
        """Returns whether a part needs no more scoring."""
        return self.scores.exists() or self.file_of(part).exists()

    def join(self) -> None:
        """Makes the scores of all pairs out of the parts'; InputError where one is not finished."""
        if self.scores.exists():
            return
        parts = [Part(number, self.num_parts) for number in range(1, self.num_parts + 1)]
        missing = [part for part in parts if not self.is_finished(part)]
        if missing:
            named = ", ".join(f"--part {part.number}/{part.of}" for part in missing[:3])
            more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
            raise InputError(f"--out: {self.out} is an audit in {self.num_parts} parts; not finished: {named}{more}")
        merge_scores([self.file_of(part) for part in parts], self.scores)


def model_digest(model: Checkpoint, architecture: str | None) -> str:
    """Returns what tells a model from others: its weights and head, its configuration, the options of its run."""
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


NUM_TOLD = 20  # words of the summary


def write_left_out(file: Path, scores: Path) -> None:
    """Writes a row for each pair that could not be scored, and why."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["where", "key", "reason"])
    problems = (record for record in read_scores(scores) if "problem" in record)
    writer.writerows(sorted((record["where"], record["key"], record["problem"]) for record in problems))
    write_text(file, text.getvalue())


def summary_of(scored: ScoredPairs, num_scored: int) -> dict:
    """Returns the numbers of an audit, for JSON."""
    found = {"pairs": len(scored), "scored": num_scored, "left_out": dict(scored.problems), "scores": {}}
    for name in SCORES:
        values = scored.scores[name][np.isfinite(scored.scores[name])]
        if len(values):
            low, middle, high = np.percentile(values, (5, 50, 95)).tolist()
            found["scores"][name] = {"mean": float(values.mean()), "5 %": low, "median": middle, "95 %": high}
    found["repeated_captions"] = scored.num_repeating()
    rows = scored.words.rows()
    found["words"] = {
        "captions": sum(row.num_captions for row in rows),
        "doubted": sum(row.num_doubted for row in rows),
    }
    found["doubted_most"] = [
        {"word": row.word, "captions": row.num_captions, "doubted": row.num_doubted} for row in rows[:NUM_TOLD]
    ]
    return found


def kept_before(file: Path) -> dict:
    """Returns what an earlier call has told of what it kept, which lies there still."""
    try:
        return {"kept": json.loads(file.read_text())["kept"]}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def told_of(scored: ScoredPairs, num_scored: int, left_out: Path) -> str:
    """Returns the numbers of an audit, for people; `left_out` is the file of what was."""
    lines = [f"{num_scored:,} pair{'s' * (num_scored > 1)} scored"]
    if scored.problems:
        reasons = ", ".join(f"{number:,} × {reason}" for reason, number in scored.problems.most_common())
        lines[0] += f"; left out: {reasons}; {left_out} lists all"
    if not scored.has_head:
        lines.append("the model has no class head: CLIP score alone, no class loss and no words")
        return "\n".join(lines)
    rows = [row for row in scored.words.rows()[:5] if row.num_doubted]
    if rows:
        named = ", ".join(f"{row.word} ({row.num_doubted:,} of {row.num_captions:,} captions)" for row in rows)
        lines.append(f"most often doubtful words: {named}")
    fraction = against(scored)
    if fraction is not None and 0.005 < fraction < 0.9:
        lines.append(
            f"{fraction:.1%} of the pairs have support below 0: --keep {1 - fraction:.2f} is a starting point; "
            "report.html shows where other fractions cut"
        )
    return "\n".join(lines)


PAGE, LEFT_OUT, SUMMARY = "report.html", "left_out.csv", "summary.json"


class Options(NamedTuple):
    """How pairs are scored."""

    architecture: str | None  # the OpenCLIP model's name, where nothing beside the weights says it
    device: str | None  # None for the GPU if there is one
    batch_size: int
    threads: int  # that decode pictures


class Audit:
    """One audit: what is read, by which model, and the folder of what came out.

    All that can be wrong is told before the model is built: InputError for data that is none, for a model without the
    head that `by` needs, for a table whose rows --keep could not copy, and for a folder of another audit.

    Args:
        by: the score that sorts the pairs, one of SORTED_BY; None for the best that the model gives.
        part: of this call; None for all.
        keep: the share of the pairs that is to be kept.
        write_shards: whether kept samples are to be written.
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
        if write_shards:
            self._check_shards()
        if keep is not None and isinstance(self.data, AuditedFiles) and self.data.is_table:
            check_table(self.data)
        self.folder = AuditFolder(out, self.data, self.checkpoint, options.architecture, part)

    def _check_shards(self) -> None:
        """Raises InputError where --write-shards has no shards to take samples from."""
        if isinstance(self.data, AuditedFiles):
            raise InputError(
                f"--write-shards is for shards, and DATA is {self.data.given}: --keep writes kept.csv of it"
            )
        if any(map(is_remote, self.data.shards)):
            raise InputError("--write-shards copies from files, and DATA holds URLs: --keep alone lists the kept keys")

    def score(self) -> int:
        """Scores what no earlier call has scored, pair by pair, and returns how many pairs the part holds that were."""
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
        """Yields the pairs that are left with their scores, and shows how far it is."""
        import torch

        pairs = self.data.pairs(part, scores.last)
        title = f"part {part.number}/{part.of}" if part.of > 1 else "pairs"
        known = self.data.num_of(part)
        with tqdm(total=known, initial=scores.num_lines, desc=title, unit=" pairs", file=progress_file()) as progress:
            preprocess, size = scorer.opened.preprocess(), self.options.batch_size
            for batch in read_in_batches(pairs, preprocess, size, self.options.threads):
                good = [read for read in batch if read.picture is not None]
                found: list[PairScore] = []
                if good:
                    seen = scorer.see(torch.stack([read.picture for read in good]))
                    found = scorer.score(seen, [read.pair.caption for read in good])
                each = iter(found)
                yield [(read, next(each) if read.picture is not None else None) for read in batch]
                progress.update(len(batch))
                if known is None:
                    progress.total = self.data.likely_num(part, progress.n, batch[-1].pair.place)

    def finish(self, num_worst: int, unreadable_max: float) -> str:
        """Joins the parts, writes the page, the summary and what is kept, and returns what to tell people.

        Raises InputError where a part is not finished, and where more than a share `unreadable_max` of the pairs or
        of the shards cannot be read; all files are there then.
        """
        folder = self.folder
        folder.join()
        scored = ScoredPairs(folder.scores, of_shards=not isinstance(self.data, AuditedFiles))
        write_left_out(folder.out / LEFT_OUT, folder.scores)
        num_scored = int(np.isfinite(scored.scores["clip_score"]).sum())
        if not len(scored):
            raise InputError(f"DATA: {self.data.given} holds no pair")
        if not num_scored:
            raise InputError(f"none of {len(scored):,} pairs could be scored; {folder.out / LEFT_OUT} says why")
        goodness = scored.goodness(self.by)
        num_sorted = int(np.isfinite(goodness).sum())
        if not num_sorted:
            raise InputError(
                f"--by {self.by}: no caption holds a word that the head has learned: give --by clip-score, or --by both"
            )
        write_page(
            folder.out / PAGE, self.data, self.checkpoint.path, scored, folder.scores, goodness, self.by, num_worst
        )
        told = [told_of(scored, num_scored, folder.out / LEFT_OUT)]
        if num_sorted < num_scored:
            told.append(f"{num_scored - num_sorted:,} without a {self.by.replace('-', ' ')} are neither shown nor kept")
        summary = summary_of(scored, num_scored)
        if self.keep is not None:
            kept = choose(goodness, self.keep)
            files = write_kept(folder.out, self.data, folder.scores, kept, self.write_shards)
            summary["kept"] = {"by": self.by, "share": self.keep, "pairs": int(kept.sum())}
            told.append(f"kept: the best {kept.sum():,} by {self.by}: {', '.join(files)}")
        elif (folder.out / KEYS).exists():
            summary |= kept_before(folder.out / SUMMARY)
        write_json(folder.out / SUMMARY, summary)
        told.append(f"worst by {self.by} first: {folder.out / PAGE}; every pair: {folder.scores}")
        self._check_unreadable(scored, unreadable_max)
        return "\n".join(told)

    def _check_unreadable(self, scored: ScoredPairs, limit: float) -> None:
        listed = f"more than --unreadable-max {limit:g} allows; {self.folder.out / LEFT_OUT} lists them"
        if scored.num_unreadable > limit * len(scored):
            found = f"{scored.num_unreadable:,} of {len(scored):,} pairs have a picture that cannot be read"
            raise InputError(f"{found}, {listed}")
        num_shards = len(getattr(self.data, "shards", []))
        if scored.num_unreadable_shards > limit * num_shards:
            raise InputError(
                f"{scored.num_unreadable_shards:,} of {num_shards:,} shards cannot be read whole, {listed}"
            )


def _record(read: ReadPair, score: PairScore | None) -> dict:
    """Returns a pair's line."""
    pair = read.pair
    record = {"place": pair.place, "where": pair.where, "key": pair.key, "caption": pair.caption}
    record |= {"uid": pair.uid} if pair.uid else {}
    if score is None:
        return record | {"problem": read.problem}
    record["clip_score"] = round(score.clip_score, 6)
    if score.class_loss is not None:
        record["class_loss"] = round(score.class_loss, 6)
    if score.support is not None:
        record["support"] = round(score.support, 6)
    for name, words in (("words", score.words), ("offered", score.offered)):
        if words:
            record[name] = [
                {
                    "word": word.word, "share": float(f"{word.share:.4g}"), "expected": float(f"{word.expected:.4g}"),
                    "support": round(word.support, 4),
                }
                for word in words
            ]  # fmt: skip
    return record
