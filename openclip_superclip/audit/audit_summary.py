"""What an audit comes to: its numbers, for JSON and for people, and what was left out of it."""

import csv
import io
import json
from pathlib import Path

import numpy as np

from ..atomic_files import write_text
from .scored_pairs import SCORES, ScoredPairs
from .scores_file import read_scores

NUM_TOLD = 20  # words of the summary


def write_left_out(file: Path, scores: Path) -> None:
    """Writes a row for each pair that could not be scored, and why."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["where", "key", "reason"])
    for record in read_scores(scores):
        if "problem" in record:
            writer.writerow([record["where"], record["key"], record["problem"]])
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
        lines.append(f"words doubted most often: {named}")
    return "\n".join(lines)
