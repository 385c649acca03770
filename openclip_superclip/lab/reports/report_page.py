"""A report on runs: one page of figures and tables, and beside it the same as Markdown and PNG,
and the runs as CSV."""

from pathlib import Path
from typing import NamedTuple

from ...files import write_bytes, write_text
from ...rendering import (
    csv_text,
    data_url,
    html_template,
    markdown_table,
    markdown_text,
    significant,
)
from ...runs.recipe import METHODS, changes_scores
from .comparable_runs import Comparison
from .figures import Figure, draw_batch_sizes, draw_losses
from .paired_differences import Spread
from .reported_run import FINISHED, MISSING, ReportedRun
from .run_scores import LABELS, format_score, in_order

BAD = (MISSING, "failed", "cut short", "preempted", "lost")  # states that the page highlights
RUN_HEADS = [
    "run",
    "state",
    "note",
    "method",
    "samples",
    "batch",
    "seed",
    "lr",
    "samples/s",
    "model",
    "data",
]
NONE = "–"  # in a cell
# the first one has the mark
FILES = ("report.html", "report.md", "runs.csv", "batch_size.png", "losses.png")
MARK = 'name="generator" content="superclip report"'


class Table(NamedTuple):
    """Cells under their heads, with a note on how to read them."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    note: str = ""


class Section(NamedTuple):
    """Figures above tables."""

    title: str
    figures: list[Figure]
    tables: list[Table]

    def markdown(self) -> str:
        parts = [f"## {markdown_text(self.title)}"]
        parts += [f"![{markdown_text(figure.describes)}]({figure.file})" for figure in self.figures]
        for table in self.tables:
            heads, *rows = [map(markdown_text, row) for row in (table.heads, *table.rows)]
            parts += [f"**{table.title}**", markdown_table([*heads], rows), table.note]
        return "\n\n".join(filter(None, parts))


def write_report(
    out: Path, title: str, facts: str, runs: list[ReportedRun], comparisons: list[Comparison]
) -> None:
    """Writes report.html, and beside it report.md, the figures and runs.csv."""
    sections = []
    for place, comparison in enumerate(comparisons, 1):
        suffix = f"_{place}" if len(comparisons) > 1 else ""
        figures = (
            draw_batch_sizes(comparison, f"batch_size{suffix}.png"),
            draw_losses(comparison, f"losses{suffix}.png"),
        )
        tables = [
            table for table in (scores_table(comparison), paper_table(comparison)) if table.rows
        ]
        sections.append(Section(comparison.name, list(filter(None, figures)), tables))
    runs_table = Table(
        "All runs", RUN_HEADS, [[_text(value) for value in _facts(run)] for run in runs]
    )
    sections.append(Section("Runs", [], [runs_table]))
    page = html_template(
        Path(__file__).with_name("report_page.html"), data_url=data_url, describe=_describe
    )
    found = [run for run in runs if run.state != MISSING]
    write_text(
        out / FILES[0],
        page.render(title=title, facts=facts, sections=sections, runs=found, bad=BAD),
    )
    for figure in (figure for section in sections for figure in section.figures):
        write_bytes(out / figure.file, figure.png)
    keys = in_order([key for run in runs for key in run.scores])
    rows = [[*_facts(run), *(run.scores.get(key) for key in keys)] for run in runs]
    write_text(out / "runs.csv", csv_text([[*RUN_HEADS, *keys], *rows]))
    markdown = [f"# {markdown_text(title)}", facts, *(section.markdown() for section in sections)]
    write_text(out / "report.md", "\n\n".join(markdown) + "\n")


def scores_table(comparison: Comparison) -> Table:
    """Returns a row for each method and batch size, and for each difference, with a column for
    each score."""
    keys, rows = comparison.score_keys, []
    for batch_size in comparison.batch_sizes:
        groups = {
            series: runs for (series, size), runs in comparison.groups.items() if size == batch_size
        }
        for series, runs in groups.items():
            seeds = [str(run.seed) for run in runs if run.state == FINISHED]
            found = (
                f"{len(seeds)} (seed {', '.join(seeds)})" if seeds else f"0 of {len(runs)} finished"
            )
            means = [_cell(comparison.score(series, batch_size, key), len(seeds)) for key in keys]
            rows.append([series.name, f"{batch_size:,}", found, *means])
        for series in groups:
            for baseline in comparison.baselines(series, batch_size):
                differences = [
                    comparison.difference(series, baseline, batch_size, key) for key in keys
                ]
                pairs = max(len(difference.values) for difference in differences if difference)
                name = f"{series.name} − {baseline.name}"
                rows.append(
                    [
                        name,
                        f"{batch_size:,}",
                        f"{pairs} pair(s)",
                        *(_cell(one, pairs) for one in differences),
                    ]
                )
    note = (
        "Mean ± standard deviation over the seeds of finished runs, in percent. Differences "
        "are paired by seed, with their 95 % interval (Student's t). The training is equal, "
        "except for what the names show."
    )
    if not keys:
        note = (
            "No finished run was evaluated: superclip evaluate RUN/checkpoints/epoch_N.pt "
            "--data DIR."
        )
    return Table(
        "Scores", ["method", "batch", "seeds", *(LABELS.get(key, key) for key in keys)], rows, note
    )


def _cell(spread: Spread | None, most: int) -> str:
    """Returns a score or a difference, with its number of seeds if other scores of the row have
    more."""
    number = f" (n = {len(spread.values)})" if spread and len(spread.values) < most else ""
    return f"{spread or NONE}{number}"


def paper_table(comparison: Comparison) -> Table:
    """Returns our scores beside the paper's, without rows if the paper has none of what was
    trained."""
    rows = []
    for (series, batch_size), runs in comparison.groups.items():
        settings = (setting for run in runs for setting in run.record.get("set", {}).items())
        changed = {f"{key}={value}" for key, value in settings if changes_scores(key)}
        for key in in_order([point.key for point in comparison.paper]):
            for paper in comparison.paper_curve(series, key):
                if paper.batch_size != batch_size:
                    continue
                source = paper.source + (
                    f"; here with --set {' '.join(sorted(changed))}" if changed else ""
                )
                here, difference = MISSING, NONE
                if ours := comparison.score(series, batch_size, key):
                    here = format_score(key, ours.mean) if key.endswith("_rmse") else str(ours)
                    difference = format_score(key, ours.mean - paper.value, "+")
                theirs = format_score(key, paper.value)
                rows.append(
                    [
                        series.name,
                        f"{batch_size:,}",
                        LABELS.get(key, key),
                        here,
                        theirs,
                        difference,
                        source,
                    ]
                )
    return Table(
        "Beside the paper",
        ["method", "batch", "score, %", "here", "the paper", "difference", "source"],
        rows,
    )


def _facts(run: ReportedRun) -> list:
    """Returns what RUN_HEADS name; None is unknown."""
    if run.state == MISSING:
        return [run.name, run.state, run.note, *[None] * (len(RUN_HEADS) - 3)]
    return [
        run.name,
        run.state,
        run.note,
        METHODS.get(run.method, run.method),
        run.samples,
        run.batch_size,
        run.seed,
        run.training.get("lr"),
        run.samples_per_second,
        run.model,
        run.data,
    ]


def _text(value: str | float | None) -> str:
    if value is None:
        return ""
    return (
        value
        if isinstance(value, str)
        else f"{value:,}"
        if isinstance(value, int)
        else significant(value, 4)
    )


def _describe(run: ReportedRun) -> str:
    """Returns what the end of the page shows of a run: versions and recipe."""
    versions = ", ".join(
        f"{name} {version}" for name, version in run.record.get("versions", {}).items()
    )
    return (
        f"versions: {versions or 'not recorded'}\n\n{run.recipe.text.strip() if run.recipe else ''}"
    )
