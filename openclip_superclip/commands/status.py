"""superclip status: progress of runs, from their folders and SLURM's queue."""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from ..errors import InputError
from ..files import read_json
from ..pages import markdown_table
from ..runs.folder import PERIOD, RUNNING, current_state, seconds_since
from ..runs.slurm import QueuedJob, my_jobs

FILES = ("state.json", "submitted.json", "recipe.yaml")  # a folder with one of these is a run
DEPTH = 4  # of folders below the given ones: STUDY/runs/RUN is two below
SILENT = 6 * PERIOD  # seconds without a heartbeat that are reported
FOLDERS = ("runs", "studies")  # default folders of runs
HEADS = ["run", "state", "progress", "samples/s", "expected end", "SLURM"]
EACH = 10  # seconds between updates


def main(argv: list[str]) -> int:
    """Prints the table, repeatedly with --watch; returns the exit code."""
    options = _parse(argv)
    folders = options.runs or [folder for folder in map(Path, FOLDERS) if folder.is_dir()]
    if not folders:
        raise InputError(f"there is no folder {' or '.join(FOLDERS)} here; give the folders of your runs")
    while True:
        queue = my_jobs() or {}
        rows, notes, is_open = [], [], False
        for run in find_runs(folders):
            row, note, more_to_come = run_status(run, queue)
            rows.append([str(run), *row])
            notes += [f"{run}: {' '.join(note.split())}"] if note else []
            is_open |= more_to_come
        if options.watch and sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")
        print("\n".join([markdown_table(HEADS, rows), *notes]), flush=True)
        if not options.watch or not is_open:
            return 0
        time.sleep(EACH)


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """Returns the run folders among these folders and inside them; InputError for a path without runs."""
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder; expected a run's, or one that holds runs")
        here = list(_runs_in(folder, DEPTH))
        if not here:
            raise InputError(f"{folder} holds no run: expected state.json in it, or in a folder below it")
        found += here
    return list(dict.fromkeys(found))


def _runs_in(folder: Path, depth: int) -> Iterator[Path]:
    if any((folder / name).exists() for name in FILES):
        yield folder
    elif depth:
        for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
            yield from _runs_in(inner, depth - 1)


def run_status(run: Path, queue: Mapping[str, QueuedJob]) -> tuple[list[str], str, bool]:
    """Returns a run's row of the table, its error or reason for waiting, and whether it can still progress by itself.

    Args:
        queue: from `my_jobs`.
    """
    values = current_state(run)
    job = queue.get(values.get("job")) or queue.get(read_json(run / "submitted.json", default={}).get("job"))
    is_broken = not values and (run / "state.json").exists()
    state = values.get("state") or ("unreadable" if is_broken else "submitted" if job else "not started")
    is_running = state == RUNNING
    silent = seconds_since(values.get("heartbeat")) if is_running else 0
    if is_broken:
        note = "state.json is not a JSON object; the next start rewrites it"
    elif refused := values.get("refused"):
        note = f"the start at {refused['since']} was refused: {refused['error']}"
    else:
        note = values.get("error") or ""
    row = [
        f"{state}, silent for {silent:.0f} s" if silent > SILENT else state,
        _progress(values),
        f"{values['samples_per_second']:,.0f}" if is_running and values.get("samples_per_second") else "",
        _clock(values.get("expected_end")) if is_running else "",
        f"{job.task} {job.state}{f' ({job.reason})' if job.reason not in ('', 'None') else ''}" if job else "",
    ]
    return row, note, is_running or job is not None


def _progress(values: dict) -> str:
    if not values.get("steps"):
        return ""
    percent = 100 * values.get("step", 0) / values["steps"]
    return f"{percent:.0f} %, {values.get('epoch', 0)} of {values.get('slices')} slices"


def _clock(time: str | None) -> str:
    """Returns a time of today as 14:05, of another day with its date."""
    if time is None:
        return ""
    end = datetime.fromisoformat(time).astimezone()
    return f"{end:%H:%M}" if end.date() == datetime.now().date() else f"{end:%Y-%m-%d %H:%M}"


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
