"""superclip status: how runs stand, here and on SLURM."""

import argparse
import sys
import time
from pathlib import Path

from ..errors import InputError
from ..running.run_status import RunStatus, find_runs, run_status
from ..running.slurm_queue import my_jobs
from ..table import markdown_table

FOLDERS = ("runs", "studies")  # where the commands put runs
HEADS = ["run", "state", "progress", "samples/s", "expected end", "SLURM"]
EACH = 10  # seconds between two looks


def main(argv: list[str]) -> int:
    """Prints the table, again and again with --watch; returns the exit code."""
    options = _parse(argv)
    folders = options.runs or [folder for folder in map(Path, FOLDERS) if folder.is_dir()]
    if not folders:
        raise InputError(f"there is no folder {' or '.join(FOLDERS)} here; give the folders of your runs")
    while True:
        queue = my_jobs() or {}
        found = [run_status(run, queue) for run in find_runs(folders)]
        if options.watch and sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")
        print(_text(found), flush=True)
        if not options.watch or not any(status.is_open for status in found):
            return 0
        time.sleep(EACH)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip status",
        description="Prints a table of runs: state, progress, samples a second, expected end, and what SLURM says of "
        "their jobs. A run whose heartbeat has stopped is lost.",
        epilog="example: superclip status runs studies/one_batch --watch",
    )
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN",
        help="folders of runs, or that hold runs (default: runs and studies)",
    )  # fmt: skip
    parser.add_argument("--watch", action="store_true", help="look every ten seconds, as long as a run trains or waits")
    return parser.parse_args(argv)


def _text(found: list[RunStatus]) -> str:
    rows = [[str(one.run), one.state, one.progress, one.speed, one.end, one.job] for one in found]
    notes = [f"{one.run}: {' '.join(one.note.split())}" for one in found if one.note]
    return "\n".join([markdown_table(HEADS, rows), *notes])
