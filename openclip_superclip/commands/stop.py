"""superclip stop: ends a run, which can be resumed."""

import os
import shlex
import signal
import socket
from pathlib import Path

from ..errors import InputError, Parser, to_stdout
from ..runs.folder import RUNNING, RunFolder, current_state
from ..runs.slurm import cancel, my_jobs
from .shared_options import add_switch


def main(argv: list[str]) -> int:
    parser = Parser(
        "stop",
        "Ends a run after its next checkpoint, without a requeue. superclip run or superclip "
        "submit resumes it.",
        "runs/superclip_seed0",
    )
    parser.option("run", "folder of the run", type=Path, metavar="RUN")
    add_switch(
        parser,
        "--now",
        "end it at once, and lose the steps since the last checkpoint; also removes a pending "
        "job from SLURM's queue",
    )
    options = parser.parse_args(argv)
    folder = RunFolder(options.run)
    state = current_state(folder.path)
    jobs = my_jobs() or {}
    job = jobs.get(state.get("job")) or jobs.get(folder.submitted_job())
    is_running = state.get("state") == RUNNING
    if not is_running and job is None:
        raise InputError(f"{folder.path} is not running: superclip status shows the state of runs")
    if options.now:
        _stop_now(folder, job.name if job else None)
        to_stdout(f"{folder.path} is being stopped")
    elif is_running:
        folder.stop_file.touch()
        to_stdout(f"{folder.path} ends after its next checkpoint")
    else:
        raise InputError(
            f"{folder.path} is not running yet: superclip stop "
            f"{shlex.quote(str(folder.path))} --now removes job {job.name} from the queue"
        )
    return 0


def _stop_now(folder: RunFolder, job: str | None) -> None:
    """Cancels the job that trains a run or, without one, ends its process on this machine."""
    if job:
        cancel(job)
        return
    owner = folder.owner()
    if owner.get("host") != socket.gethostname():
        raise InputError(
            f"{folder.path} is trained by process {owner.get('pid')} on {owner.get('host')}: "
            "call superclip stop there"
        )
    os.kill(owner["pid"], signal.SIGTERM)
