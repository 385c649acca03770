"""A report on runs: one page, and beside it the same as PNG, Markdown, CSV and JSON."""

import base64
import math
from pathlib import Path
from typing import NamedTuple

from ..files import whole_file, write_json, write_text
from ..pages import html_template
from ..words.learning import draw_word_courses
from .comparison import Comparison
from .figures import batch_sizes_note, course_note, draw_batch_sizes, draw_course, draw_losses, runs_without_losses
from .finished_runs import MISSING, ReportedRun
from .scores import label
from .tables import ReportTable, paper_table, read_courses, runs_table, scores_table, words_table

MOST_DRAWN = 4  # runs, in the figure of words being learned
BAD = (MISSING, "failed", "cut short", "preempted")  # states that the page highlights


class Figure(NamedTuple):
    """A PNG, its caption, and how to read it."""

    file: str
    png: bytes
    describes: str
    note: str = ""


class Section(NamedTuple):
    """Figures above tables; a table's key is its CSV's name."""

    title: str
    figures: list[Figure]
    tables: dict[str, ReportTable]
    note: str = ""

    def markdown(self) -> str:
        parts = [f"## {self.title}"]
        for figure in self.figures:
            parts += [f"![{figure.describes}]({figure.file})", figure.note]
        return "\n\n".join(filter(None, [*parts, *(table.markdown() for table in self.tables.values())]))


def write_report(out: Path, title: str, facts: str, runs: list[ReportedRun], comparisons: list[Comparison]) -> None:
    """Writes report.html and, beside it, the same as PNG, Markdown, CSV and JSON."""
    out.mkdir(parents=True, exist_ok=True)
    suffixes = [f"_{place}" if len(comparisons) > 1 else "" for place, _ in enumerate(comparisons, 1)]
    sections = [_comparison_section(*one) for one in zip(comparisons, suffixes, strict=True)]
    sections += [*_words_sections(runs), Section("Runs", [], {"runs.csv": runs_table(runs)})]
    for section in sections:
        for figure in section.figures:
            with whole_file(out / figure.file) as file:
                file.write(figure.png)
        for name, table in section.tables.items():
            write_text(out / name, table.csv())
    content = {
        "title": title, "facts": facts, "runs": list(map(_run_record, runs)),
        "comparisons": list(map(_comparison_record, comparisons)),
    }  # fmt: skip
    write_json(out / "report.json", _finite(content))
    markdown = [f"# {title}", facts, *(section.markdown() for section in sections)]
    write_text(out / "report.md", "\n\n".join(markdown) + "\n")
    filters = {"base64": lambda image: base64.b64encode(image).decode(), "describe": _describe}
    page = html_template(Path(__file__).with_name("report.html"), **filters)
    found = [run for run in runs if run.state != MISSING]
    write_text(out / "report.html", page.render(title=title, facts=facts, sections=sections, runs=found, bad=BAD))


def _comparison_section(comparison: Comparison, suffix: str) -> Section:
    figures = [
        Figure(f"batch_size{suffix}.png", draw_batch_sizes(comparison), "Scores over the batch size",
               batch_sizes_note(comparison)),
        Figure(f"losses{suffix}.png", draw_losses(comparison), "Losses over the samples seen"),
        Figure(f"course{suffix}.png", draw_course(comparison), "Scores over the samples seen",
               course_note(comparison)),
    ]  # fmt: skip
    tables = {f"scores{suffix}.csv": scores_table(comparison), f"paper{suffix}.csv": paper_table(comparison)}
    without = ", ".join(run.name for run in runs_without_losses(comparison))
    return Section(
        comparison.name,
        [figure for figure in figures if figure.png],
        {name: table for name, table in tables.items() if table},
        f"Without a logged loss: {without}." if without else "",
    )


def _words_sections(runs: list[ReportedRun]) -> list[Section]:
    """Returns a section on words being learned, if a run has recorded them."""
    courses, notes = read_courses(runs)
    if not courses and not notes:
        return []
    figures, tables = [], {}
    if courses:
        note = f"{MOST_DRAWN} of {len(courses)} runs are drawn." if len(courses) > MOST_DRAWN else ""
        image = draw_word_courses(courses[:MOST_DRAWN])
        figures = [Figure("words.png", image, "How many words are known, and how well, over the captions seen", note)]
        tables = {"words.csv": words_table(courses)}
    return [Section("Words being learned", figures, tables, "; ".join(notes))]


def _describe(run: ReportedRun) -> str:
    """Returns what the end of the page shows of a run: state, versions, command and recipe."""
    versions, measured_with = (
        ", ".join(f"{name} {version}" for name, version in packages.items())
        for packages in (run.versions, run.measured_with)
    )
    lines = {
        "state": run.state + (f" ({run.note})" if run.note else ""),
        "versions": versions or "not recorded",
        "measured with": measured_with,
        "hosts": ", ".join(run.hosts),
        "--set": ", ".join(f"{key}={value}" for key, value in run.set.items()),
        "command": run.command,
    }
    text = [f"{name}: {value}" for name, value in lines.items() if value]
    return "\n".join([*text, *(["", run.recipe.text.strip()] if run.recipe else [])])


def _run_record(run: ReportedRun) -> dict:
    values = {name: value for name, value in vars(run).items() if name not in ("recipe", "path")}
    recipe = run.recipe.text if run.recipe else None
    return {"run": str(run.path), **values, "samples_per_second": run.samples_per_second, "recipe": recipe}


def _comparison_record(comparison: Comparison) -> dict:
    cells = [
        {
            "method": comparison.title(series, batch_size),
            "batch_size": batch_size,
            "runs": [str(run.path) for run in found],
            "scores": {
                key: {"label": label(key), "mean": spread.mean, "std": spread.std, "values": spread.values}
                for key in comparison.score_keys
                if (spread := comparison.score(series, batch_size, key))
            },
        }
        for (series, batch_size), found in comparison.groups.items()
    ]
    return {
        "model": comparison.model, "data": comparison.data, "samples": comparison.samples, "cells": cells,
        "paper": [point._asdict() for point in comparison.paper],
    }  # fmt: skip


def _finite(value):
    """Returns a value for JSON, which has no infinity and no NaN."""
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
