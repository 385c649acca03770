"""superclip status: progress of runs, from their folders and SLURM's queue."""

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

from ..errors import InputError, Parser, to_stderr, to_stdout
from ..rendering import markdown_table
from ..runs.folder import RUNNING, current_state, read_fields
from ..runs.slurm import QueuedJob, has_job, my_jobs

FILES = ("state.json", "submitted.json", "recipe.yaml")  # a folder with one of these is a run
DEPTH = 4  # of folders below the given ones: STUDY/runs/RUN is two below
DEFAULT = Path("runs")
HEADS = ["run", "state", "progress", "samples/s", "expected end", "SLURM"]


def main(argv: list[str]) -> int:
    parser = Parser(
        "status",
        "Prints a table of runs: state, progress, samples per second, expected end and SLURM job. "
        "A run without a heartbeat for two minutes is lost. Not started: its job ended before "
        "superclip run began.",
        "runs/superclip_seed0",
    )
    parser.option(
        "runs",
        "folders of runs, or folders that contain runs (default: runs)",
        nargs="*",
        type=Path,
        metavar="RUN",
    )
    options = parser.parse_args(argv)
    given = options.runs
    queue = my_jobs() or {}
    counts = Counter()
    rows = []
    notes = []
    found = {}  # without duplicates
    for folder in given or [DEFAULT]:
        here = dict.fromkeys(_runs_in(folder) if folder.is_dir() else ())
        if given and not here:
            problem = "contains no run" if folder.is_dir() else "is not a folder"
            raise InputError(
                f"{folder} {problem}: expected state.json in it or in a folder below it"
            )
        found |= here
    if not found:
        raise InputError(f"there is no run in {DEFAULT} here; give the folders of your runs")
    for run in found:
        row, note = run_status(run, queue)
        counts[row[0]] += 1
        rows.append([str(run), *row])
        notes += [f"{run}: {' '.join(note.split())}"] if note else []
    total = f"runs: {', '.join(f'{number} {state}' for state, number in counts.most_common())}"
    to_stdout("\n".join([markdown_table(HEADS, rows), *notes, total]))
    return 0


def _runs_in(folder: Path) -> Iterator[Path]:
    def report(error: OSError) -> None:
        to_stderr(f"superclip status: {error}")

    for place, folders, files in os.walk(folder, onerror=report, followlinks=True):
        # the folder of a rehearsal contains its runs
        is_run = "state.json" in files or (
            not set(FILES).isdisjoint(files) and not any(Path(place).glob("*/state.json"))
        )
        depth = len(Path(place).relative_to(folder).parts)
        if is_run:
            yield Path(place)
        folders[:] = [] if is_run or depth == DEPTH else sorted(folders)


def run_status(run: Path, queue: Mapping[str, QueuedJob]) -> tuple[list[str], str]:
    """Returns a run's row of the table, and its error or ""; the queue is from `my_jobs`."""
    values = current_state(run)
    submitted = read_fields(run / "submitted.json").get("job")
    job = queue.get(values.get("job")) or queue.get(submitted)
    state = values.get("state") or ("submitted" if job else "not started")
    is_damaged = not values and (run / "state.json").exists()
    if is_damaged:
        state = "damaged"
    running = values if state == RUNNING else {}
    speed = running.get("samples_per_second")
    end = running.get("expected_end")
    progress = ""
    if values.get("steps"):
        percent = 100 * (values.get("step") or 0) / values["steps"]
        progress = f"{percent:.0f} %, {values.get('epoch', 0)} of {values.get('slices')} slices"
    row = [
        state,
        progress,
        f"{speed:,.0f}" if speed else "",
        _local_time(end),
        f"{job.name} {job.state}{f' ({job.reason})' if job.reason not in ('', 'None') else ''}"
        if job
        else "",
    ]
    if is_damaged:
        return row, "state.json cannot be read; superclip run resumes from the last checkpoint"
    if refused := values.get("refused"):
        since = refused.get("since")
        return row, f"the start at {since} was refused: {refused.get('error')}"
    if not values and submitted and not job and shutil.which("squeue") and not has_job(submitted):
        return (
            row,
            f"job {submitted} has ended before superclip run started: see the end of "
            f"{run}/slurm-*.out",
        )
    return row, values.get("error") or ""


def _local_time(text: str | None) -> str:
    """Returns a recorded time by the clock of this machine; "" for another text."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M}"
    return ""
