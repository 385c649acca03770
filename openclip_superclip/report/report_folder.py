"""Everything that `superclip report` writes: the page, and figures, tables and numbers beside it."""

import json
from pathlib import Path

from ..atomic_files import whole_file
from ..table import Table
from .batch_size_figure import about, draw_batch_sizes
from .comparison import Comparison
from .comparison_tables import cost_table, paper_table, runs_table, scores_table
from .html_page import Page
from .loss_figure import draw_curves, not_drawn
from .reported_run import MISSING, ReportedRun
from .run_scores import label


def write_report(out: Path, title: str, facts: str, runs: list[ReportedRun], comparisons: list[Comparison]) -> None:
    """Writes report.html and, beside it, the same as PNG, Markdown, CSV and JSON."""
    out.mkdir(parents=True, exist_ok=True)
    page, markdown = Page(title, facts), [f"# {title}", facts]
    all_runs = runs_table(runs)
    for place, comparison in enumerate(comparisons, 1):
        page.section(comparison.name)
        markdown.append(f"## {comparison.name}")
        suffix = f"_{place}" if len(comparisons) > 1 else ""
        for kind, draw, describes, told in (
            ("batch_size", draw_batch_sizes, "Scores over the batch size", about(comparison)),
            ("losses", draw_curves, "Losses over the samples seen", ""),
        ):
            image = draw(comparison)
            if image:
                _write(out / f"{kind}{suffix}.png", image)
                page.figure(image, f"{describes}: {comparison.name}")
                page.text(told)
                markdown += filter(None, [f"![{describes}]({kind}{suffix}.png)", told])
        silent = ", ".join(run.name for run in not_drawn(comparison))
        page.text(f"Without a logged loss: {silent}." if silent else "")
        for name, table in _tables(comparison).items():
            page.table(table)
            markdown.append(table.markdown())
            _write(out / f"{name}{suffix}.csv", table.csv().encode())
    page.section("Runs")
    page.table(all_runs._replace(title="All that were asked for"))
    markdown += ["## Runs", all_runs.markdown()]
    _write(out / "runs.csv", all_runs.csv().encode())
    page.section("Recipes and versions")
    for run in runs:
        if run.state != MISSING:
            page.run(run)
    _write(out / "report.json", _json(title, facts, runs, comparisons).encode())
    _write(out / "report.md", ("\n\n".join(markdown) + "\n").encode())
    _write(out / "report.html", page.html().encode())


def _tables(comparison: Comparison) -> dict[str, Table]:
    tables = {"scores": scores_table(comparison), "paper": paper_table(comparison), "cost": cost_table(comparison)}
    return {name: table for name, table in tables.items() if table is not None}


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
            "method": series.name,
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
