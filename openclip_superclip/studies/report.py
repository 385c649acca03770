"""What a report shows: a section for each comparison with its figures and tables, and one for the runs."""

import base64
import json
from pathlib import Path
from typing import NamedTuple

from ..files import whole_file
from ..pages import html_template
from ..words.learning import draw_word_courses
from .comparison import (
    ABSENT,
    Comparison,
    ReportTable,
    paper_table,
    read_courses,
    runs_table,
    scores_table,
    words_table,
)
from .figures import about, about_course, draw_batch_sizes, draw_course, draw_curves, not_drawn
from .finished_runs import MISSING, ReportedRun
from .scores import label

MOST_DRAWN = 4  # runs, of words being learned


class Figure(NamedTuple):
    """A PNG, what it shows in words, and how it is to be read."""

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
        """Returns the section in Markdown, which shows the figures' files."""
        parts = [f"## {self.title}"]
        for figure in self.figures:
            parts += [f"![{figure.describes}]({figure.file})", figure.note]
        return "\n\n".join(filter(None, [*parts, *(table.markdown() for table in self.tables.values())]))


def report_sections(runs: list[ReportedRun], comparisons: list[Comparison]) -> list[Section]:
    """Returns the report's sections in their order."""
    sections = []
    for place, comparison in enumerate(comparisons, 1):
        suffix = f"_{place}" if len(comparisons) > 1 else ""
        sections.append(_comparison_section(comparison, suffix))
    words = _words_section(runs)
    return [*sections, *([words] if words else []), Section("Runs", [], {"runs.csv": runs_table(runs)})]


def _words_section(runs: list[ReportedRun]) -> Section | None:
    """Returns the words being learned, of the runs that have recorded them; None where none has."""
    courses, notes = read_courses(runs)
    if not courses:
        return Section("Words being learned", [], {}, "; ".join(notes)) if notes else None
    drawn = courses[:MOST_DRAWN]
    note = f"Drawn are {len(drawn)} of {len(courses)} runs." if len(drawn) < len(courses) else ""
    png = draw_word_courses(drawn)
    figure = Figure("words.png", png, "How many words are known, and how well, over the captions trained on", note)
    return Section("Words being learned", [figure], {"words.csv": words_table(courses)}, "; ".join(notes))


def _comparison_section(comparison: Comparison, suffix: str) -> Section:
    scores, losses = draw_batch_sizes(comparison), draw_curves(comparison)
    course = draw_course(comparison)
    figures = [
        Figure(f"batch_size{suffix}.png", scores, "Scores over the batch size", about(comparison)),
        Figure(f"losses{suffix}.png", losses, "Losses over the samples seen"),
        Figure(f"course{suffix}.png", course, "Scores over the samples seen", about_course(comparison)),
    ]
    tables = {"scores": scores_table(comparison), "paper": paper_table(comparison)}
    silent = ", ".join(run.name for run in not_drawn(comparison))
    return Section(
        comparison.name,
        [figure for figure in figures if figure.png],
        {f"{name}{suffix}.csv": table for name, table in tables.items() if table},
        f"Without a logged loss: {silent}." if silent else "",
    )


BAD = (ABSENT, "failed", "cut short", "preempted")


def html_page(title: str, facts: str, sections: list[Section], runs: list[ReportedRun]) -> str:
    """Returns the whole page; recipes, versions and commands of the runs stand at its end, folded."""
    filters = {"base64": _base64, "describe": _describe}
    template = html_template(Path(__file__).with_name("report.html"), **filters)
    found = [run for run in runs if run.state != MISSING]
    return template.render(title=title, facts=facts, sections=sections, runs=found, bad=BAD)


def _base64(image: bytes) -> str:
    return base64.b64encode(image).decode()


def _describe(run: ReportedRun) -> str:
    versions, measured_with = (
        ", ".join(f"{name} {version}" for name, version in packages.items()) or "not recorded"
        for packages in (run.versions, run.measured_with)
    )
    changed = ", ".join(f"{key}={value}" for key, value in run.set.items())
    text = [f"state: {run.state}" + (f" ({run.note})" if run.note else ""), f"versions: {versions}"]
    text += [f"measured with: {measured_with}"] if run.measured_with else []
    text += [f"hosts: {', '.join(run.hosts)}"] if run.hosts else []
    text += [f"--set: {changed}"] if changed else []
    text += [f"command: {run.command}"] if run.command else []
    text += ["", run.recipe.text.strip()] if run.recipe else []
    return "\n".join(text)


def write_report(
    out: Path, title: str, facts: str, runs: list[ReportedRun], comparisons: list[Comparison]
) -> None:  # fmt: skip
    """Writes report.html and, beside it, the same as PNG, Markdown, CSV and JSON."""
    out.mkdir(parents=True, exist_ok=True)
    sections = report_sections(runs, comparisons)
    for section in sections:
        for figure in section.figures:
            _write(out / figure.file, figure.png)
        for name, table in section.tables.items():
            _write(out / name, table.csv().encode())
    markdown = [f"# {title}", facts, *(section.markdown() for section in sections)]
    _write(out / "report.json", _json(title, facts, runs, comparisons).encode())
    _write(out / "report.md", ("\n\n".join(markdown) + "\n").encode())
    _write(out / "report.html", html_page(title, facts, sections, runs).encode())


def _write(path: Path, content: bytes) -> None:
    with whole_file(path) as file:
        file.write(content)


def _json(title: str, facts: str, runs: list[ReportedRun], comparisons: list[Comparison]) -> str:
    content = {
        "title": title,
        "facts": facts,
        "runs": [_of_run(run) for run in runs],
        "comparisons": [_of_comparison(comparison) for comparison in comparisons],
    }
    return json.dumps(_finite(content), indent=1) + "\n"


def _of_run(run: ReportedRun) -> dict:
    values = {name: value for name, value in vars(run).items() if name not in ("recipe", "path")}
    recipe = run.recipe.text if run.recipe else None
    return {"run": str(run.path), **values, "samples_per_second": run.samples_per_second, "recipe": recipe}


def _of_comparison(comparison: Comparison) -> dict:
    cells = [
        {
            "method": comparison.told(series, batch_size),
            "batch_size": batch_size,
            "runs": [str(run.path) for run in found],
            "scores": {
                key: {"label": label(key), "mean": spread.mean, "std": spread.std, "values": spread.values}
                for key in comparison.score_keys
                if (spread := comparison.score(series, batch_size, key))
            },
        }
        for (series, batch_size), found in comparison.cells.items()
    ]
    paper = [point._asdict() for point in comparison.paper]
    return {
        "model": comparison.model,
        "data": comparison.data,
        "samples": comparison.samples,
        "cells": cells,
        "paper": paper,
    }


def _finite(value):
    """Returns a value for JSON, which knows no infinity."""
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if (isinstance(value, float) and abs(value) == float("inf")) or value != value else value
