"""Everything that `superclip report` writes: the page, and figures, tables and numbers beside it."""

import json
from pathlib import Path

from ..atomic_files import whole_file
from .comparison import Comparison
from .html_page import html_page
from .report_sections import report_sections
from .reported_run import ReportedRun
from .run_scores import label


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
