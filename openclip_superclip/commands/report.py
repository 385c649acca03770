"""superclip report: losses and scores of runs side by side, with the paper's."""

import argparse
from datetime import datetime
from pathlib import Path

from .. import __version__
from ..errors import InputError, Parser, no_effect
from ..extras import require
from ..files import check_results, make_folder
from ..plans.recipe import METHODS
from ..rendering import run_names
from ..reports.comparable_runs import find_comparisons
from ..reports.published_record import write_record
from ..reports.reported_run import MISSING, ReportedRun, read_run
from .shared_options import add_folder


def main(argv: list[str]) -> int:
    """Writes the page, or with --record the records; returns the exit code."""
    options = _parse(argv)
    if options.record is not None:
        no_effect(options, "--record", "title")
        for run in _read_runs(options.runs):
            print(write_record(run, options.record))
        return 0
    require("superclip report", "report")
    from ..reports.report_page import FILES, MARK, pictures, write_report

    check_results(options.out, [*FILES, *pictures(options.out)], MARK)
    runs = _read_runs(options.runs)
    trained = [run for run in runs if run.state != MISSING]
    summary = f"{len(trained)} runs, {len(runs) - len(trained)} missing"
    facts = f"{summary}; openclip-superclip {__version__}, {datetime.now():%Y-%m-%d %H:%M}"
    methods = dict.fromkeys(METHODS[run.method] for run in trained)
    make_folder(options.out)
    title = options.title or " and ".join(methods)
    write_report(options.out, title, facts, runs, find_comparisons(runs))
    print(f"{options.out}/report.html: {summary}")
    for run in runs:
        if run.note:
            print(f"{run.path}: {run.state}, {run.note}")
    return 0


def _read_runs(folders: list[Path]) -> list[ReportedRun]:
    """Returns the runs, each once; InputError if there is none."""
    paths = list({path.resolve(): path for path in folders}.values())
    runs = [read_run(path, name) for path, name in zip(paths, run_names(paths), strict=True)]
    if all(run.state == MISSING for run in runs):
        notes = "; ".join(f"{run.path}: {run.note}" for run in runs[:3])
        raise InputError(
            f"RUN: no run found ({notes}); expected folders of superclip run or of OpenCLIP's "
            "training"
        )
    return runs


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        "report",
        "Writes one page, report.html, on training runs and their evaluations: loss curves, "
        "scores over the batch size, and tables beside the paper's values. Also writes the page "
        "as Markdown with PNG figures, and runs.csv.",
        "logs/clip logs/superclip --out report",
    )
    add = parser.option
    add(
        "runs",
        "folders of superclip run, superclip train or OpenCLIP",
        nargs="+",
        type=Path,
        metavar="RUN",
    )
    add_folder(parser, "--out", "output folder (default: %(default)s)", default=Path("report"))
    add_folder(
        parser,
        "--record",
        "instead of the page, write DIR/RUN/record.json for each finished run: recipe, "
        "versions, device, scores",
    )
    add("--title", "title of the page (default: the methods of the runs)")
    return parser.parse_args(argv)
