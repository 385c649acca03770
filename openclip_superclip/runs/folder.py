"""The folder of a run: OpenCLIP's logs and checkpoints, run.json about the run, state.json about
its state."""

import os
import re
import shutil
import tempfile
import time
from pathlib import Path

from ..checkpoints.best_epoch import best_epoch
from ..checkpoints.resume_record import NAME, changed_data, versions_of_run
from ..checkpoints.trainer_files import RECORD, checkpoints, is_complete, newest
from ..environment import current_time
from ..errors import InputError
from ..files import (
    check_results,
    content_digest,
    is_full,
    json_or_empty,
    json_text,
    make_folder,
    write_json,
    write_text,
)
from ..plans.recipe import WORDS, Recipe
from ..plans.run import NUM_KEPT, OLD_DESCRIPTION, Run
from .lock import killed_owner, lock, owner_of
from .recovery import ENDS, LOST, Decision
from .slurm import SETUP, Placement, has_job, hosts

RUNNING = "running"
PREEMPTED = "preempted"
FINISHED = "finished"
FAILED = "failed"
HEARTBEAT = 10  # seconds between two heartbeats of a run
# seconds without a heartbeat after which a run is lost: network file systems can lag by a minute
STALE = 120


# of the fields that are read from state.json and run.json; another type counts as missing
TYPES = {
    "state": str,
    "heartbeat": str,
    "expected_end": str,
    "samples_per_second": int | float,
    "job": str,
    "error": str,
    "refused": dict,
    **dict.fromkeys(("step", "steps", "epoch", "slices"), int),
    "attempts": list,
    "changes": list,
    "data_check": dict,
}


def read_fields(file: Path) -> dict:
    """Returns the JSON object in a file of a run's folder, without fields of a wrong type; {} if it
    is missing or broken."""
    return {
        name: value
        for name, value in json_or_empty(file).items()
        if value is None or isinstance(value, TYPES.get(name, object))
    }


def current_state(run: Path) -> dict:
    """Returns the content of state.json in a run's folder, {} if there is none.

    If it says `running` but the process or its heartbeat is gone, `state` is `lost` and `error`
    says why.
    """
    state = read_fields(run / "state.json")
    problem = why_gone(run) if state.get("state") == RUNNING else None
    if problem is None:
        return state
    last = f"stopped without an error message; last heartbeat at {state.get('heartbeat')}"
    return {**state, "state": LOST, "error": f"{problem}: {last}"}


def why_gone(run: Path) -> str | None:
    """Returns why the process that trains into a folder is gone, None if it may be alive."""
    if owner := killed_owner(run / "lock"):
        return f"process {owner.get('pid')} on {owner['host']} is gone"
    return "no heartbeat" if _age(run / "state.json") > STALE else None


def _age(file: Path) -> float:
    """Returns the seconds since a file was written, by the clock of its file system, which may
    differ from this machine's."""
    try:
        with tempfile.TemporaryFile(dir=file.parent) as new:
            new.write(b"now")
            new.flush()
            return os.fstat(new.fileno()).st_mtime - file.stat().st_mtime
    except OSError:  # a folder of another user, or a full disk
        return time.time() - file.stat().st_mtime


class RunFolder:
    """RUN/, which is --logs PARENT --name NAME for OpenCLIP.

    Only `superclip run` on the first node writes to it. A damaged state.json or run.json counts as
    missing: a run resumes from its newest checkpoint in any case.
    """

    def __init__(self, path: Path):
        # OpenCLIP would look for checkpoints elsewhere
        if re.search(r"[*?\[\]]", str(path.absolute())):
            raise InputError(f"--out is {path}; expected a path without *, ? and brackets")
        # OpenCLIP needs its name
        self.path = path if path.name not in ("", "..") else path.resolve()
        if not self.path.name:
            raise InputError(f"--out is {path}; expected the name of a folder")
        self.checkpoints = self.path / "checkpoints"
        self.state_file = self.path / "state.json"
        self.stop_file = self.path / "stop_after_slice"  # asks a run to end after its slice

    def state(self) -> dict:
        """Returns the content of state.json, {} if there is none."""
        return read_fields(self.state_file)

    @property
    def is_finished(self) -> bool:
        return self.state().get("state") == FINISHED

    def record(self) -> dict:
        """Returns the content of run.json, {} if there is none."""
        return read_fields(self.path / RECORD)

    @property
    def epoch(self) -> int:
        """The number of saved slices: the epoch of the newest complete checkpoint."""
        return newest(self.checkpoints)

    @property
    def attempts(self) -> list[dict]:
        """The starts of the run."""
        attempts = self.record().get("attempts") or []
        return [attempt for attempt in attempts if isinstance(attempt, dict)]

    def check_is_own(self) -> None:
        """Raises InputError if the folder contains files of a run's names that no run has
        written; a run has written state.json even if run.json is damaged."""
        if "heartbeat" in self.state():
            return
        first, key = RECORD, "run"
        if (self.path / OLD_DESCRIPTION).exists():
            first, key = OLD_DESCRIPTION, "slice_steps"
        check_results(self.path, (first, "recipe.yaml", "job.sh", SETUP), key)

    def check_recipe(
        self, recipe: Recipe, advice: str = "give --out another folder, or --accept-changes"
    ) -> None:
        """Raises InputError if the folder contains a run of another recipe, which has begun or
        is in SLURM's queue."""
        run = Run.find(self.path)
        here = recipe.as_dict()
        there = run.recipe.as_dict() if run else here
        differences = [
            f"{key} is {there.get(key)} there and {here.get(key)} here"
            for key in there | here
            if key not in WORDS and there.get(key) != here.get(key)
        ]
        if differences and (self.attempts or self.checkpoints.exists() or self._queued_job()):
            raise InputError(
                f"{self.path} contains a run of another recipe: {', '.join(differences)}; {advice}"
            )

    def check_data(self, advice: str, data: str, device: str | None = None) -> None:
        """Raises InputError if the folder's run has other data or is for another device.

        Also if it is finished, and its training data or a table that it has read has changed since.
        """
        run = Run.find(self.path) if self.attempts or self.is_finished else None
        for name, value in {"data": data, "device": device}.items():
            there = getattr(run, name, None)
            if None not in (there, value) and there != value:
                raise InputError(
                    f"{self.path} contains a run with --{name} {there}, not {value}; {advice}"
                )
        if not self.is_finished:
            return
        tables = (self.record().get("data_check") or {}).get("tables")
        for path, digest in tables.items() if isinstance(tables, dict) else ():
            if os.path.exists(path) and content_digest(Path(path)) != digest:
                raise InputError(
                    f"{path} has changed since {self.path} was trained on it: {advice}"
                )
        if change := changed_data(self.path, data):
            raise InputError(f"{self.path} was trained on other data ({change[0]}): {advice}")

    def _queued_job(self) -> str | None:
        """Returns the job that was submitted last, if SLURM has it or does not answer; None
        where SLURM is missing."""
        job = self.submitted_job()
        return job if job and shutil.which("squeue") and has_job(job) else None

    def write(self, run: Run, **values) -> None:
        """Writes the run's description, with more fields of run.json, and its recipe."""
        make_folder(self.path)
        self.note(run=run.as_json(), **values)
        write_text(self.path / "recipe.yaml", run.recipe.text)
        (self.path / OLD_DESCRIPTION).unlink(missing_ok=True)

    def check_is_free(self, placement: Placement) -> None:
        """Raises InputError if a job trains the run, or waits to, or if a process of another
        start trains it."""
        if job := self._queued_job():
            raise InputError(
                f"job {job} already trains {self.path}: scancel {job} ends it, or give --out "
                f"another folder; if it has ended, remove {self.path}/submitted.json"
            )
        if (self.path / "lock").exists():
            with lock(self.path / "lock", placement):
                pass

    def owner(self) -> dict:
        """Returns the process that trains the run, {} if there is none."""
        return owner_of(self.path / "lock")

    def submitted_job(self) -> str | None:
        """Returns the SLURM job that was submitted last, ARRAY_TASK for the task of an array."""
        return read_fields(self.path / "submitted.json").get("job")

    def note_submission(self, job: str) -> None:
        """Writes submitted.json."""
        write_json(self.path / "submitted.json", {"job": job, "since": current_time()})

    def start(
        self, run: Run, placement: Placement, logs: str, *, accepts: bool = False, **values
    ) -> None:
        """Writes run.json, with this start added to its attempts, and the state "running".

        `accepts` is whether this start accepts changes, and `values` are more fields of run.json.
        """
        attempts = self.attempts
        if attempts and "state" not in attempts[-1]:
            attempts[-1].update(state=LOST, ended=self.state().get("heartbeat"))
        attempt = {
            "job": placement.job,
            "restarts": placement.restarts,
            "step": placement.step,
            "hosts": hosts(),
            "ranks": f"ranks/{logs}",
            "started": current_time(),
            "epoch_before": self.epoch,
            "accepts": accepts,
        }
        self.write(
            run,
            cwd=os.getcwd(),
            data_check=None,
            versions=versions_of_run(),
            attempts=[*attempts, attempt],
            **values,
        )
        (self.path / NAME).unlink(missing_ok=True)  # run.json contains it now
        last = [{}, *attempts][-1]
        is_requeued = placement.step is not None and placement.job == last.get("job")
        if not (is_requeued and last.get("again", True)):
            self.stop_file.unlink(missing_ok=True)  # asked of an earlier job
        self._write_state(
            RUNNING, restarts=len(attempts), job=placement.job, requeues=placement.restarts
        )

    def note(self, **values) -> None:
        """Writes values into run.json."""
        write_json(self.path / RECORD, self.record() | values)

    def beat(self, **values) -> None:
        """Writes into state.json that the run is alive, and its progress."""
        state = {"state": RUNNING, **self.state(), "heartbeat": current_time(), **values}
        write_json(self.state_file, state)

    def note_refusal(self, error: str) -> None:
        """Writes into state.json that a start was refused; the run's own state stays."""
        refused = {"since": current_time(), "error": error}
        write_json(self.state_file, {**self.state(), "refused": refused})

    def end(self, state: str, error: str | None = None, then: Decision = ENDS) -> None:
        """Writes how this start of the run ended and, if the run continues, how."""
        self._write_state(state, error=error, next=then.next, without=then.without)
        attempts = self.attempts or [{}]
        attempts[-1] |= {
            "ended": current_time(),
            "epoch_after": self.epoch,
            "state": state,
            "error": error,
            "again": then.next is not None,
        }
        try:
            self.note(attempts=attempts)
        except OSError as full:
            if not is_full(full):
                raise

    def _write_state(self, state: str, **values) -> None:
        """Writes state.json at the begin or the end of a start, on a full disk in place."""
        content = self.state()
        content.pop("refused", None)
        content |= {
            "state": state,
            "since": current_time(),
            "heartbeat": current_time(),
            "expected_end": None,
            "error": None,
            "next": None,
            "without": None,
            "epoch": self.epoch,
            **values,
        }
        try:
            write_json(self.state_file, content)
        except OSError as full:
            if not is_full(full):
                raise
            with open(self.state_file, "r+") as opened:
                opened.write(json_text(content))
                opened.truncate()

    def prune(self, run: Run) -> None:
        """Removes the checkpoints that are neither among the newest nor to be kept, nor the best
        in validation."""
        best = best_epoch(self.path)
        saved = checkpoints(self.checkpoints)
        complete = [epoch for epoch, path in saved.items() if is_complete(path)]
        for epoch in complete[:-NUM_KEPT]:
            if not run.keeps(epoch) and (best is None or epoch != best.epoch):
                saved[epoch].unlink()
