"""superclip report: losses and scores of runs side by side, with the paper's."""

from datetime import datetime
from pathlib import Path

from .. import __version__
from ..environment import require
from ..errors import InputError, Parser, no_effect
from ..files import check_results, make_folder
from ..lab.reports.comparable_runs import find_comparisons
from ..lab.reports.published_record import write_record
from ..lab.reports.reported_run import MISSING, read_run
from ..rendering import run_names
from ..runs.recipe import METHODS


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="superclip report",
        description="Writes one page, report.html, on training runs and their evaluations: "
        "loss curves, scores over "
        "the batch size, and tables beside the paper's values. Also writes the page as "
        "Markdown with PNG figures, and runs.csv.",
        epilog="example: superclip report logs/clip logs/superclip --out report",
    )
    add = parser.add_argument
    add(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folders of superclip run, superclip train or OpenCLIP",
    )
    add(
        "--out",
        type=Path,
        default=Path("report"),
        metavar="DIR",
        help="output folder (default: %(default)s)",
    )
    about = (
        "instead of the page, write DIR/RUN/record.json for each finished run: recipe, "
        "versions, device, scores"
    )
    add("--record", type=Path, metavar="DIR", help=about)
    add("--title", help="title of the page (default: the methods of the runs)")
    options = parser.parse_args(argv)
    if options.record is None:
        _check_page(options.out)
    else:
        no_effect(options, "--record", "title")
    paths = {path.resolve(): path for path in options.runs}  # without duplicates
    runs = [
        read_run(path, name)
        for path, name in zip(paths.values(), run_names([*paths.values()]), strict=True)
    ]
    found = [run for run in runs if run.state != MISSING]
    if not found:
        notes = "; ".join(f"{run.path}: {run.note}" for run in runs[:3])
        raise InputError(
            f"RUN: no run found ({notes}); expected folders of superclip run or of OpenCLIP's "
            "training"
        )
    if options.record is not None:
        for run in runs:
            print(write_record(run, options.record))
        return 0
    from ..lab.reports.report_page import write_report

    summary = f"{len(found)} runs, {len(runs) - len(found)} missing"
    facts = f"{summary}; openclip-superclip {__version__}, {datetime.now():%Y-%m-%d %H:%M}"
    title = options.title or " and ".join(
        dict.fromkeys(METHODS.get(run.method, run.method) for run in found)
    )
    make_folder(options.out, "--out")
    write_report(options.out, title, facts, runs, find_comparisons(runs))
    print(f"{options.out}/report.html: {summary}")
    for run in runs:
        if run.note:
            print(f"{run.path}: {run.state}, {run.note}")
    return 0


def _check_page(out: Path) -> None:
    """Raises InputError if the page cannot be drawn, or if its folder contains something else."""
    require("superclip report", "report", "matplotlib", "scipy")
    from ..lab.reports.report_page import FILES, MARK

    check_results(out, "--out", FILES, MARK)
