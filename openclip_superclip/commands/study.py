"""superclip study: several methods by paired seeds, and which of their differences exclude zero."""

import argparse
import sys
from pathlib import Path

from ..errors import InputError
from ..optional_dependencies import check_matplotlib, check_scipy
from .run import settings


def main(argv: list[str]) -> int:
    """Trains, measures, prints the table and writes the results; returns the exit code."""
    options = _parse(argv)
    from ..study.study_file import read_study, study_files

    if options.list:
        for path in study_files():
            print(f"{path.stem}: {read_study(str(path)).question}")
        return 0
    check_matplotlib("superclip study")
    check_scipy("superclip study")
    from ..running.stop_signals import Stopped, stopped_by_signals
    from ..study.study import run_study

    try:
        with stopped_by_signals():
            results = run_study(options.study, options.out, options.seeds, options.jobs, options.device, options.data,
                                options.val_data, settings(options.set), options.runs)  # fmt: skip
    except Stopped as stop:
        print(f"superclip study: stopped by {stop}; the same command resumes", file=sys.stderr, flush=True)
        return stop.exit_code
    print(f"\n{results}")
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip study",
        description="Trains the arms of a study by paired seeds (equal initial weights of the towers, equal order of "
        "the data, equal crops), measures them, and prints each difference with its 95 % interval. A call that was "
        "stopped resumes with the same command.",
        epilog="example: superclip study one_batch --jobs 2 --out studies/one_batch",
    )
    parser.add_argument("study", nargs="?", metavar="STUDY", help="a file, or a name that --list shows")
    parser.add_argument("--list", action="store_true", help="the shipped studies and their questions")
    parser.add_argument("--seeds", type=int, metavar="N", help="paired seeds (default: the study's)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: %(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu", help="what trains (default: %(default)s)")
    parser.add_argument(
        "--data", metavar="SHARDS", help="brace pattern of shards to train on, in quotes (default: the study's)"
    )
    parser.add_argument(
        "--val-data",
        metavar="SHARDS",
        help="shards to measure on, by OpenCLIP's own retrieval, instead of the demo's scenes",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another value for a field of the recipe, in every run",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of runs and results (default: studies/NAME)")
    parser.add_argument(
        "--runs",
        type=Path,
        metavar="DIR",
        help="folder of the runs, which studies of one recipe may share: what one trained, another only measures "
        "(default: OUT/runs)",
    )
    options = parser.parse_args(argv)
    if not options.study and not options.list:
        raise InputError("superclip study: expected a STUDY, a file or one of those that superclip study --list shows")
    for name in ("seeds", "jobs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} is {value}; expected 1 or more")
    return options
