"""A report on runs: one page of figures and tables, and beside it the same as Markdown and PNG,
and the runs as CSV."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import listed
from ..files import write_bytes, write_text
from ..plans.recipe import GIVEN, METHODS, Recipe, changes_scores
from ..rendering import (
    csv_text,
    data_url,
    html_template,
    markdown_table,
    markdown_text,
    significant,
)
from .comparable_runs import Comparison
from .figures import Figure, draw_batch_sizes, draw_losses
from .paired_differences import Spread
from .reported_run import MISSING, ReportedRun
from .run_scores import LABELS, in_order

BAD = (MISSING, "failed", "cut short", "preempted", "lost")  # states that the page highlights
NONE = "–"  # in a cell
FILES = ("report.html", "report.md", "runs.csv")  # the first one has the mark
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
            heads, *rows = [list(map(markdown_text, row)) for row in (table.heads, *table.rows)]
            parts += [f"**{table.title}**", markdown_table(heads, rows), table.note]
        return "\n\n".join(filter(None, parts))


def pictures(out: Path) -> list[str]:
    """Returns the names of the figures that a report has written into a folder."""
    names = (path.name for path in out.glob("*.png"))
    return [name for name in names if re.fullmatch(r"(batch_size|losses)(_\d+)?\.png", name)]


def write_report(
    out: Path, title: str, facts: str, runs: list[ReportedRun], comparisons: list[Comparison]
) -> None:
    """Writes report.html, and beside it report.md, the figures and runs.csv, replacing an earlier
    report."""
    sections = []
    for number, comparison in enumerate(comparisons, 1):
        suffix = f"_{number}" if len(comparisons) > 1 else ""
        sections.append(_comparison_section(comparison, suffix))
    heads = list(_facts(runs[0]))
    rows = [list(map(_text, _facts(run).values())) for run in runs]
    sections.append(Section("Runs", [], [Table("All runs", heads, rows)]))
    template = html_template(__file__, data_url=data_url, describe=_describe)
    page = template.render(title=title, facts=facts, sections=sections, runs=runs, bad=BAD)
    write_text(out / FILES[0], page)
    for name in pictures(out):
        (out / name).unlink()
    for section in sections:
        for figure in section.figures:
            write_bytes(out / figure.file, figure.png)
    keys = in_order(key for run in runs for key in run.scores)
    rows = [[*_facts(run).values(), *map(run.scores.get, keys)] for run in runs]
    write_text(out / "runs.csv", csv_text([[*heads, *keys], *rows]))
    markdown = [f"# {markdown_text(title)}", facts, *(section.markdown() for section in sections)]
    write_text(out / "report.md", "\n\n".join(markdown) + "\n")


def _comparison_section(comparison: Comparison, suffix: str) -> Section:
    figures = (
        draw_batch_sizes(comparison, f"batch_size{suffix}.png"),
        draw_losses(comparison, f"losses{suffix}.png"),
    )
    tables = (scores_table(comparison), paper_table(comparison))
    return Section(
        comparison.name,
        [figure for figure in figures if figure],
        [table for table in tables if table.rows],
    )


def scores_table(comparison: Comparison) -> Table:
    """Returns a row for each method and batch size, and then for each difference, with a column
    for each score."""
    keys = comparison.score_keys
    scores = []
    differences = []
    for group in comparison.groups:
        name = group.series.name
        size = f"{group.batch_size:,}"
        seeds = [str(run.seed) for run in group.runs if run.is_finished]
        number = f"0 of {len(group.runs)} finished"
        if seeds:
            number = f"{len(seeds)} (seed {', '.join(seeds)})"
        cells = _cells([group.score(key) for key in keys], len(seeds))
        scores.append([name, size, number, *cells])
        for baseline in comparison.baselines(group):
            by_key = [group.difference(baseline, key) for key in keys]
            pairs = max(map(len, by_key))
            names = f"{name} − {baseline.series.name}"
            differences.append([names, size, f"{pairs} pair(s)", *_cells(by_key, pairs)])
    note = (
        "Mean ± standard deviation over the seeds of finished runs, in percent, except for RMSE. "
        "Differences are paired by seed, with their 95 % interval (Student's t). The training is "
        "equal, except for what the names show."
    )
    runs = comparison.runs
    differing = {
        name
        for name, settings in itertools.chain(*(run.evaluated.items() for run in runs))
        if any(run.evaluated.get(name, settings) != settings for run in runs)
    }
    if differing:
        names = listed(sorted(differing))
        note += f" The runs were evaluated with different settings, data or versions: {names}."
    if not keys:
        note = (
            "No finished run was evaluated: superclip evaluate RUN/checkpoints/epoch_N.pt "
            "--data DIR."
        )
    heads = ["method", "batch", "seeds", *(LABELS.get(key, key) for key in keys)]
    return Table("Scores", heads, scores + differences, note)


def _cells(scores: list[Spread], most: int) -> list[str]:
    """Returns scores or differences, with their number of seeds where it is below `most`."""
    cells = []
    for score in scores:
        text = str(score or NONE)
        if 0 < len(score) < most:
            text += f" (n = {len(score)})"
        cells.append(text)
    return cells


def _changes(recipe: Recipe) -> Iterator[str]:
    """Yields KEY=VALUE of a recipe's fields that were given with --set and change the scores."""
    for key, why in recipe.chosen.items():
        if why == GIVEN and changes_scores(key):
            name, _, inner = key.partition(".")
            value = getattr(recipe, name, None)
            yield f"{key}={(value or {}).get(inner) if inner else value}"


def paper_table(comparison: Comparison) -> Table:
    """Returns our scores beside the paper's, without rows if the paper has none of what was
    trained."""
    rows = []
    for group in comparison.groups:
        recipes = [run.planned.recipe for run in group.runs if run.planned]
        changed = set().union(*map(_changes, recipes))
        here_with = f"; here with --set {' '.join(sorted(changed))}" if changed else ""
        for paper in comparison.paper_of(group.series):
            if paper.batch_size != group.batch_size:
                continue
            key = paper.key
            ours = group.score(key)
            here = MISSING
            difference = NONE
            if ours:
                here = str(ours)
                difference = f"{ours.mean - paper.value:+.1f}"
            rows.append(
                [
                    group.series.name,
                    f"{group.batch_size:,}",
                    LABELS.get(key, key),
                    here,
                    str(paper.value),
                    difference,
                    f"{paper.source}{here_with}",
                ]
            )
    heads = ["method", "batch", "score, %", "here", "the paper", "difference", "source"]
    return Table("Beside the paper", heads, rows)


def _facts(run: ReportedRun) -> dict[str, object]:
    """Returns what the table of all runs contains, by its heads; None is unknown."""
    return {
        "run": run.name,
        "state": run.state,
        "note": run.note,
        "method": METHODS.get(run.method),
        "samples": run.samples,
        "batch": run.batch_size,
        "seed": run.seed,
        "lr": run.training.get("lr"),
        "samples/s": run.samples_per_second,
        "model": run.model,
        "data": run.data,
    }


def _text(fact: str | float | None) -> str:
    if isinstance(fact, float):
        return significant(fact, 4)
    return f"{fact:,}" if isinstance(fact, int) else fact or ""


def _describe(run: ReportedRun) -> str:
    """Returns what the end of the page shows of a run: versions and recipe."""
    versions = [f"{name} {version}" for name, version in run.versions.items()]
    recipe = run.planned.recipe.text.strip() if run.planned else ""
    return f"versions: {', '.join(versions) or 'not recorded'}\n\n{recipe}"
