"""superclip report: the losses and scores of runs side by side, beside the paper's."""

import argparse
from datetime import datetime
from pathlib import Path

from .. import __version__
from ..environment import require
from ..errors import InputError


def main(argv: list[str]) -> int:
    """Reads the runs, writes the report and returns the exit code."""
    options = _parse(argv)
    require("superclip report", "report", "matplotlib", "scipy")
    from ..runs.recipe import METHODS
    from ..studies.comparison import find_comparisons
    from ..studies.finished_runs import MISSING, read_runs, tell_copies

    paths = {path.resolve(): path for path in options.runs}  # each once, however it is written
    runs = read_runs(list(paths.values()))
    tell_copies(runs)
    missing = [run for run in runs if run.state == MISSING]
    if len(missing) == len(runs):
        told = "; ".join(f"{run.path}: {run.note}" for run in missing[:3])
        raise InputError(f"RUN: no run was found ({told}); give folders of superclip run or of OpenCLIP's training")
    from ..studies.report import write_report

    facts = (
        f"{len(runs) - len(missing)} runs, {len(missing)} missing; openclip-superclip {__version__}, "
        f"{datetime.now():%Y-%m-%d %H:%M}"
    )
    methods = dict.fromkeys(METHODS.get(run.method, run.method) for run in runs if run.state != MISSING)
    title = options.title or " and ".join(methods)
    try:
        write_report(options.out, title, facts, runs, find_comparisons(runs))
    except OSError as error:
        raise InputError(f"--out: {options.out} cannot be written ({error.strerror})") from error
    print(f"{options.out}/report.html: {len(runs) - len(missing)} runs, {len(missing)} missing")
    for run in runs:
        if run.note:
            print(f"{run.path}: {run.state}, {run.note}")
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip report",
        description="Makes one page, report.html, of training runs and what superclip evaluate measured of them: loss "
        "curves, scores over the batch size, tables beside the paper's values. Figures, "
        "tables and numbers lie beside it as PNG, Markdown, CSV and JSON.",
        epilog="example: superclip report logs/clip logs/superclip --out report",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN",
        help="folders of superclip run or, as far as they tell, of superclip train and OpenCLIP; one that is missing "
        "is shown as missing",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--title", help="(default: the methods of the runs)")
    return parser.parse_args(argv)
