"""What a report shows: a section for each comparison with its figures and tables, and one for the runs."""

from typing import NamedTuple

from ..data.word_course_figure import draw_word_courses
from . import course_figure
from .batch_size_figure import about, draw_batch_sizes
from .comparison import Comparison
from .comparison_tables import cost_table, paper_table, runs_table, scores_table
from .loss_figure import draw_curves, not_drawn
from .report_table import ReportTable
from .reported_run import ReportedRun
from .words_table import read_courses, words_table

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
    course = course_figure.draw_course(comparison)
    figures = [
        Figure(f"batch_size{suffix}.png", scores, "Scores over the batch size", about(comparison)),
        Figure(f"losses{suffix}.png", losses, "Losses over the samples seen"),
        Figure(f"course{suffix}.png", course, "Scores over the samples seen", course_figure.about(comparison)),
    ]
    tables = {"scores": scores_table(comparison), "paper": paper_table(comparison), "cost": cost_table(comparison)}
    silent = ", ".join(run.name for run in not_drawn(comparison))
    return Section(
        comparison.name,
        [figure for figure in figures if figure.png],
        {f"{name}{suffix}.csv": table for name, table in tables.items() if table},
        f"Without a logged loss: {silent}." if silent else "",
    )
