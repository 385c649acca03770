"""What `superclip words --course` prints and writes: the course of each run's words, by band and word by word."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import torch

from ..atomic_files import whole_file, write_json, write_text
from ..table import markdown_table
from .word_course import KNOWN, NUM_LOOKED_AT, WordCourse, band_summaries

NAME = "word_course"
SHOWN = 12  # words of a list


def course_text(course: WordCourse) -> str:
    """Returns what people are told of a run's words, in Markdown."""
    rows = [
        [
            summary.band, f"{summary.words:,}",
            "–" if summary.half_known_after is None else f"{summary.half_known_after:,}",
            f"{summary.learned:,}", f"{summary.not_yet:,}", f"{summary.forgotten:,}",
        ]
        for summary in band_summaries(course)
    ]  # fmt: skip
    heads = ["in … of captions", "words", "half known after", "learned", "not yet", "forgotten"]
    num_rare = int(((course.captions > 0) & (course.band < 0)).sum())
    lines = [
        f"{course.name}: {course.samples[-1]:,} captions in {course.epochs[-1]:,} epochs; a word is known where its "
        f"share is {KNOWN:g} × that in other pictures; {num_rare:,} words are held by fewer than {NUM_LOOKED_AT}",
        markdown_table(heads, rows),
    ]
    lists = [("first", _by_time(course)), ("last", _by_time(course)[::-1]), *_states(course)]
    told = [f"{what}: {_shortened(course, tokens)}" for what, tokens in lists if tokens]
    return "\n\n".join([*lines, "\n".join(told)]) + "\n"


def write_word_courses(out: Path, courses: Sequence[WordCourse]) -> None:
    """Writes word_course.csv, a row a run and word; .json, the bands' curves; and .png, which shows them."""
    from .word_course_figure import draw_word_courses  # needs matplotlib

    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{NAME}.csv", _csv(courses))
    write_json(out / f"{NAME}.json", {"runs": [course_record(course) for course in courses]}, allow_nan=False)
    with whole_file(out / f"{NAME}.png") as file:
        file.write(draw_word_courses(courses))


def _by_time(course: WordCourse) -> list[int]:
    """Returns the tokens that were learned, the first first, of one time the frequent ones."""
    tokens = (course.learned >= 0).nonzero().flatten().tolist()
    return sorted(tokens, key=lambda token: (int(course.learned[token]), -int(course.captions[token])))


def _states(course: WordCourse) -> list[tuple[str, list[int]]]:
    """Returns the tokens that are not yet learned and those that were forgotten, the frequent ones first."""
    by_state = {"not yet learned": (course.band >= 0) & (course.learned < 0), "forgotten": course.is_forgotten}
    order = course.captions.argsort(descending=True, stable=True)
    return [(state, order[which[order]].tolist()) for state, which in by_state.items()]


def _shortened(course: WordCourse, tokens: list[int]) -> str:
    more = f" and {len(tokens) - SHOWN:,} more" if len(tokens) > SHOWN else ""
    return " ".join(course.texts[token] for token in tokens[:SHOWN]) + more


def _csv(courses: Sequence[WordCourse]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["run", "token", "word", "captions", "share of captions", "state", "learned after", "lift"])
    for course in courses:
        for token in (course.captions > 0).nonzero().flatten().tolist():
            captions, lift = int(course.captions[token]), float(course.lift[token])
            writer.writerow([
                course.name, token, course.texts[token], captions, f"{captions / course.num_captions:.6g}",
                course.state(token), course.learned_after(token), "" if lift != lift else f"{lift:.4g}",
            ])  # fmt: skip
    return file.getvalue()


def course_record(course: WordCourse) -> dict:
    """Returns what JSON tells of a run's words: what became of each band's, and its curves."""
    places = course.band[course.band >= 0].unique().tolist()
    curves = [
        summary._asdict() | {"known": _numbers(course.known[place]), "median_lift": _numbers(course.median_lift[place])}
        for summary, place in zip(band_summaries(course), places, strict=True)
    ]
    return {
        "run": course.name, "known_from_lift": KNOWN, "captions_for_a_look": NUM_LOOKED_AT, "epochs": course.epochs,
        "epochs_not_recorded": course.missing, "captions": course.samples, "bands": curves,
    }  # fmt: skip


def _numbers(curve: torch.Tensor) -> list[float | None]:
    return [round(value, 6) if abs(value) < float("inf") else None for value in curve.tolist()]
