"""An audit: scores the pairs of a data set into a folder, and shows and keeps what the scores say."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ..atomic_files import write_json
from ..checkpoints.checkpoint import Checkpoint, latest_checkpoint
from ..data.shard_pattern import is_remote
from ..data.table_columns import Columns
from ..errors import InputError
from ..tagging.tagging_model import open_checkpoint, read_model, without_head
from ..torch_device import check_device
from .audit_folder import AuditFolder
from .audit_page import write_page
from .audit_summary import kept_before, summary_of, told_of, write_left_out
from .audited_data import WHOLE, AuditedFiles, Part, open_data
from .kept_pairs import KEYS, check_table, choose, write_kept
from .pair_reading import ReadPair, read_in_batches
from .pair_scores import PairScore, PairScorer
from .scored_pairs import ScoredPairs
from .scores_file import UnfinishedScores

PAGE, LEFT_OUT, SUMMARY = "report.html", "left_out.csv", "summary.json"


class Options(NamedTuple):
    """How pairs are scored."""

    architecture: str | None  # the OpenCLIP model's name, where nothing beside the weights says it
    device: str
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
        check_device(options.device)
        self.options, self.part, self.keep, self.write_shards = options, part, keep, write_shards
        self.checkpoint = _checkpoint(model)
        has_head = bool(self.checkpoint.head())
        if not has_head and by not in (None, "clip-score"):
            advice = without_head(self.checkpoint.path)
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
        with tqdm(total=known, initial=scores.num_lines, desc=title, unit=" pairs") as progress:
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


def _checkpoint(model: Path) -> Checkpoint:
    """Returns the model's file, of a run's folder its last checkpoint."""
    if (model / "checkpoints").is_dir():
        last = latest_checkpoint(str(model / "checkpoints"), save_most_recent=False)
        if last is None:
            raise InputError(f"--model: {model} is a run without a checkpoint; expected checkpoints/epoch_N.pt in it")
        model = Path(last)
    return read_model(model)


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
