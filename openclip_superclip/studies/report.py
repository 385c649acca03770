"""A report on runs: one page of figures and tables, and beside it the same as PNG, Markdown and CSV."""

import base64
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..files import whole_file, write_text
from ..pages import csv_text, html_template, markdown_table
from ..runs.recipe import METHODS
from ..words.learning import (
    KNOWN,
    NUM_LOOKED_AT,
    WordCourse,
    band_summaries,
    draw_word_courses,
    find_course,
    word_course,
)
from .comparison import Comparison, number
from .figures import Figure, report_figures
from .finished_runs import MISSING, ReportedRun
from .scores import format_score, in_order, label
from .statistics import PairedDifference, Spread

MOST_DRAWN = 4  # runs, in the figure of words being learned
BAD = (MISSING, "failed", "cut short", "preempted")  # states that the page highlights
HARMLESS = ("seed", "shards", "data_samples", "slices", "workers")  # fields that do not change a score's mean
MORE_NUMBERS = ("standard deviation", "95 % interval from", "95 % interval to")  # of a cell, after the first


class Numeric(NamedTuple):
    """A cell with a number: its text, and the number and as many of MORE_NUMBERS as there are."""

    text: str = "–"
    numbers: tuple[float | None, ...] = ()

    def __str__(self) -> str:
        return self.text


def numeric(value: float | Spread | None, format: str = ",") -> Numeric:
    """Returns the cell of a number, a spread or a paired difference."""
    if value is None:
        return Numeric()
    if isinstance(value, PairedDifference):
        return Numeric(str(value), (value.mean, value.std, *(value.interval or (None, None))))
    if isinstance(value, Spread):
        return Numeric(str(value), (value.mean, value.std))
    return Numeric(f"{value:{format}}", (value,))


class Table(NamedTuple):
    """Cells under their heads, with a note on how to read them."""

    title: str
    heads: list[str]
    rows: list[list[str | Numeric]]
    note: str = ""

    def markdown(self) -> str:
        rows = [[str(cell) for cell in row] for row in self.rows]
        return "\n\n".join(filter(None, [f"**{self.title}**", markdown_table(self.heads, rows), self.note]))

    def csv(self) -> str:
        """Returns the table as CSV, with columns of their own for standard deviations and intervals."""
        columns = []
        for place, head in enumerate(self.heads):
            cells = [row[place] for row in self.rows]
            values = [cell.numbers if isinstance(cell, Numeric) else (cell,) for cell in cells]
            for part in range(max(1, *map(len, values))):
                numbers = [one[part] if part < len(one) else None for one in values]
                numbers = [round(value, 6) if isinstance(value, float) else value for value in numbers]
                columns.append([f"{head}, {MORE_NUMBERS[part - 1]}" if part else head, *numbers])
        return csv_text(zip(*columns, strict=True))


class Section(NamedTuple):
    """Figures above tables; a table's key is its CSV's name."""

    title: str
    figures: list[Figure]
    tables: dict[str, Table]
    note: str = ""

    def markdown(self) -> str:
        parts = [f"## {self.title}"]
        for figure in self.figures:
            parts += [f"![{figure.describes}]({figure.file})", figure.note]
        tables = (table.markdown() for table in self.tables.values())
        return "\n\n".join(filter(None, [*parts, self.note, *tables]))


def write_report(out: Path, title: str, facts: str, runs: list[ReportedRun], comparisons: list[Comparison]) -> None:
    """Writes report.html and, beside it, the same as PNG, Markdown and CSV."""
    out.mkdir(parents=True, exist_ok=True)
    sections = []
    for place, comparison in enumerate(comparisons, 1):
        suffix = f"_{place}" if len(comparisons) > 1 else ""
        tables = {f"scores{suffix}.csv": scores_table(comparison), f"paper{suffix}.csv": paper_table(comparison)}
        tables = {name: table for name, table in tables.items() if table.rows}
        sections.append(Section(comparison.name, report_figures(comparison, suffix), tables))
    sections += [*_words_sections(runs), Section("Runs", [], {"runs.csv": runs_table(runs)})]
    for section in sections:
        for figure in section.figures:
            with whole_file(out / figure.file) as file:
                file.write(figure.png)
        for name, table in section.tables.items():
            write_text(out / name, table.csv())
    markdown = [f"# {title}", facts, *(section.markdown() for section in sections)]
    write_text(out / "report.md", "\n\n".join(markdown) + "\n")
    filters = {"base64": lambda image: base64.b64encode(image).decode(), "describe": _describe}
    page = html_template(Path(__file__).with_name("report.html"), **filters)
    found = [run for run in runs if run.state != MISSING]
    write_text(out / "report.html", page.render(title=title, facts=facts, sections=sections, runs=found, bad=BAD))


def scores_table(comparison: Comparison) -> Table:
    """Returns a row for each method and batch size, and for each difference, with a column for each score."""
    keys, rows = comparison.score_keys, []
    for batch_size in comparison.batch_sizes:
        groups = {series: runs for (series, size), runs in comparison.groups.items() if size == batch_size}
        for series, runs in groups.items():
            seeds = [str(run.seed) for run in runs if run.is_whole]
            found = f"{len(seeds)} (seed {', '.join(seeds)})" if seeds else f"0 of {len(runs)} finished"
            means = [numeric(comparison.score(series, batch_size, key)) for key in keys]
            rows.append([series.name, numeric(batch_size), found, *means])
        for series in groups:
            for baseline in comparison.baselines(series, batch_size):
                differences = [comparison.difference(series, baseline, batch_size, key) for key in keys]
                pairs = max(len(difference.values) for difference in differences if difference)
                name = f"{series.name} − {baseline.name}"
                rows.append([name, numeric(batch_size), f"{pairs} pair(s)", *map(numeric, differences)])
    note = (
        "Mean ± standard deviation over the seeds of finished runs, in percent. Differences are paired by seed, with "
        "their 95 % interval (Student's t); except for what the names say, the training is equal."
    )
    if not keys:
        note = "No finished run was evaluated: superclip evaluate RUN/checkpoints/epoch_N.pt --data DIR."
    return Table("Scores", ["method", "batch", "seeds", *map(label, keys)], rows, note)


def paper_table(comparison: Comparison) -> Table:
    """Returns our scores beside the paper's, without rows if the paper has none of what was trained."""
    rows = []
    for (series, batch_size), runs in comparison.groups.items():
        changed = {f"{key}={value}" for run in runs for key, value in run.set.items() if key not in HARMLESS}
        for key in in_order([point.key for point in comparison.paper]):
            for paper in comparison.paper_curve(series, key):
                if paper.batch_size != batch_size:
                    continue
                source = paper.source + (", read off ±0.05" if paper.read_off else "")
                source += f"; here with --set {' '.join(sorted(changed))}" if changed else ""
                here, difference = Numeric(MISSING), Numeric()
                if ours := comparison.score(series, batch_size, key):
                    here = numeric(ours.mean, ".3f") if key.endswith("_rmse") else numeric(ours)
                    difference = Numeric(format_score(key, ours.mean - paper.value, "+"), (ours.mean - paper.value,))
                theirs = Numeric(format_score(key, paper.value), (paper.value,))
                name = series.name_in_paper
                rows.append([name, numeric(batch_size), label(key), here, theirs, difference, source])
    heads = ["method", "batch", "score, %", "here", "the paper", "difference", "source"]
    return Table("Beside the paper", heads, rows)


def runs_table(runs: list[ReportedRun]) -> Table:
    """Returns a row for every run that was named, found or not."""
    rows = []
    for run in runs:
        what = [""] + [Numeric()] * 5 + [""] * 2
        if run.state != MISSING:
            what = [
                METHODS.get(run.method, run.method), Numeric(number(run.samples), (run.samples,)),
                numeric(run.batch_size), numeric(run.seed, ""), numeric(run.training.get("lr"), "g"),
                numeric(run.samples_per_second, ",.0f"), run.model, run.data,
            ]  # fmt: skip
        rows.append([run.name, run.state, run.note, *what])
    heads = ["run", "state", "note", "method", "samples", "batch", "seed", "lr", "samples/s", "model", "data"]
    return Table("All runs", heads, rows)


def read_courses(runs: Iterable[ReportedRun]) -> tuple[list[WordCourse], list[str]]:
    """Returns the word courses that the runs have recorded, and what is unreadable or missing."""
    courses, notes = [], []
    for run in runs:
        try:
            if files := find_course(run.path):
                courses.append(word_course(run.name, files))
                notes += filter(None, [courses[-1].warning])
        except InputError as error:
            notes.append(str(error))
    return courses, notes


def _words_sections(runs: list[ReportedRun]) -> list[Section]:
    """Returns a section on words being learned, if a run has recorded them."""
    courses, notes = read_courses(runs)
    if not courses:
        return [Section("Words being learned", [], {}, "; ".join(notes))] if notes else []
    rows = [
        [
            course.name, summary.band, numeric(summary.words), numeric(summary.half_known_after),
            numeric(summary.learned), numeric(summary.not_yet), numeric(summary.forgotten),
        ]
        for course in courses
        for summary in band_summaries(course)
    ]  # fmt: skip
    heads = ["run", "in … of captions", "words", "half known after", "learned", "not yet", "forgotten"]
    note = (
        f"A word (a vocabulary token) is known if the head gives it {KNOWN:g} times the probability that it has for "
        f"other images, over {NUM_LOOKED_AT} captions or more. “Half known after” is the number of captions until half "
        "of a band's words are known."
    )
    table = Table("Words by how many captions hold them", heads, rows, note)
    drawn = f"{MOST_DRAWN} of {len(courses)} runs are drawn." if len(courses) > MOST_DRAWN else ""
    image = draw_word_courses(courses[:MOST_DRAWN])
    figure = Figure("words.png", image, "How many words are known, and how well, over the captions seen", drawn)
    return [Section("Words being learned", [figure], {"words.csv": table}, "; ".join(notes))]


def _describe(run: ReportedRun) -> str:
    """Returns what the end of the page shows of a run: state, versions, command and recipe."""

    def listed(found: dict | None, sign: str) -> str:
        return ", ".join(f"{name}{sign}{value}" for name, value in (found or {}).items())

    lines = {
        "state": run.state + (f" ({run.note})" if run.note else ""),
        "versions": listed(run.record.get("versions"), " ") or "not recorded",
        "measured with": listed(run.measured_with, " "),
        "hosts": ", ".join(run.record.get("hosts") or ()),
        "--set": listed(run.set, "="),
        "command": " ".join(map(str, run.record.get("command") or ())),
    }
    text = [f"{name}: {value}" for name, value in lines.items() if value]
    return "\n".join([*text, *(["", run.recipe.text.strip()] if run.recipe else [])])
