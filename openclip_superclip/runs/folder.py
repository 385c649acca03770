"""The folder of a run: OpenCLIP's logs and checkpoints, run.json about the run, state.json about
its state."""

import contextlib
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from ..checkpoints.resume import DEPENDS_ON, NAME
from ..checkpoints.run_outputs import RECORD, checkpoints, is_complete, newest
from ..checkpoints.validation import best_epoch
from ..environment import versions
from ..errors import InputError
from ..files import (
    check_results,
    content_digest,
    is_full,
    json_text,
    make_folder,
    read_json,
    write_json,
    write_text,
)
from .lock import is_running, lock
from .recipe import WORDS, Recipe, read_recipe
from .recovery import Requeue, Restart
from .run import NUM_KEPT, OLD_DESCRIPTION, Run
from .slurm import SETUP, Placement, has_job, hosts

RUNNING, PREEMPTED, FINISHED, FAILED = "running", "preempted", "finished", "failed"
LOST = "lost"  # its process was killed
PERIOD = 10  # seconds between two heartbeats of a run
# seconds without a heartbeat after which a run is lost: network file systems can lag by a minute
STALE = 120
RECORDED = re.compile(
    r"(CUDA|NCCL|SLURM|OMP|TORCH|PYTORCH|GLOO|FI|UCX|HOROVOD|MASTER)_|HF_HUB_OFFLINE$"
)
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|JWT|CREDENTIAL|AUTH", re.IGNORECASE)


def current_state(run: Path) -> dict:
    """Returns the content of state.json in a run's folder, {} if there is none.

    If it says `running` but the process or its heartbeat is gone, `state` is `lost` and `error`
    says why.
    """
    file = run / "state.json"
    state = read_json(file, default={})
    if state.get("state") != RUNNING:
        return state
    owner = read_json(run / "lock", default={})
    if owner.get("host") == socket.gethostname() and not is_running(owner.get("pid")):
        problem = f"process {owner.get('pid')} on {owner['host']} is gone"
    elif _seconds_since(file) > STALE:
        problem = "no heartbeat"
    else:
        return state
    error = (
        f"{problem}: stopped without an error message; last heartbeat at {state.get('heartbeat')}"
    )
    return {**state, "state": LOST, "error": error}


def _seconds_since(file: Path) -> float:
    """Returns the age of a file by the clock of its file system, from which this machine's may
    differ."""
    try:
        with tempfile.TemporaryFile(dir=file.parent) as new:
            new.write(b"now")
            new.flush()
            return os.fstat(new.fileno()).st_mtime - file.stat().st_mtime
    except OSError:  # a folder of another user, or a full disk
        return time.time() - file.stat().st_mtime


def recorded_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the variables that influence a run, without secrets."""
    names = (name for name in environment if RECORDED.match(name) and not SECRET.search(name))
    return {name: environment[name] for name in sorted(names)}


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
        self.checkpoints = self.path / "checkpoints"

    def state(self) -> dict:
        """Returns the content of state.json, {} if there is none."""
        return read_json(self.path / "state.json", default={})

    def record(self) -> dict:
        """Returns the content of run.json, {} if there is none."""
        return read_json(self.path / RECORD, default={})

    @property
    def attempts(self) -> list[dict]:
        """The starts of the run."""
        return self.record().get("attempts", [])

    def check_is_own(self) -> None:
        """Raises InputError if the folder contains files of a run's names that no run has
        written."""
        first = OLD_DESCRIPTION if (self.path / OLD_DESCRIPTION).exists() else RECORD
        check_results(self.path, "--out", (first, "recipe.yaml", "job.sh", SETUP), '"slice_steps"')

    def check_recipe(
        self, recipe: Recipe, advice: str = "give --out another folder, or --accept-changes"
    ) -> None:
        """Raises InputError if the folder contains a run of another recipe, which has begun or
        is in SLURM's queue."""
        differences = self._differences(recipe)
        if differences and (self.attempts or self.checkpoints.exists() or self._queued_job()):
            raise InputError(
                f"{self.path} contains a run of another recipe: {', '.join(differences)}; {advice}"
            )

    def _differences(self, recipe: Recipe) -> list[str]:
        """Returns the fields in which the recipe differs from the folder's."""
        try:
            there = Run.open(self.path).recipe.as_dict()
        except InputError:  # missing, or damaged
            if not (self.path / "recipe.yaml").exists():
                return []
            there = read_recipe(str(self.path / "recipe.yaml")).as_dict()
        given = recipe.as_dict()
        keys = [
            key for key in there | given if key not in WORDS and there.get(key) != given.get(key)
        ]
        return [f"{key} is {there.get(key)} there and {given.get(key)} here" for key in keys]

    def check_plan(self, advice: str, **values: str) -> None:
        """Raises InputError if the folder's run has other values in its plan, such as `data`.

        Also if it is finished, and a table that it has read has changed since.
        """
        plan, tables = (
            self.record().get("plan", {}),
            (self.record().get("data_check") or {}).get("tables", {}),
        )
        for name, value in values.items():
            if plan.get(name) not in (None, value):
                raise InputError(
                    f"{self.path} contains a run with --{name} {plan[name]}, not {value}; {advice}"
                )
        for path, digest in tables.items() if self.state().get("state") == FINISHED else ():
            if os.path.exists(path) and content_digest(Path(path)) != digest:
                raise InputError(
                    f"{path} has changed since {self.path} was trained on it: {advice}"
                )

    def _queued_job(self) -> str | None:
        """Returns the job that was submitted last, if SLURM has it or does not answer; None
        where SLURM is missing."""
        job = self.submitted_job()
        return job if job and shutil.which("squeue") and has_job(job) else None

    def write(self, run: Run) -> None:
        """Writes the run's description and its recipe."""
        make_folder(self.path, "--out")
        self.note(run=run.as_json())
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

    def submitted_job(self) -> str | None:
        """Returns the SLURM job that was submitted last, ARRAY_TASK for the task of an array."""
        return read_json(self.path / "submitted.json", default={}).get("job")

    def note_submission(self, job: str) -> None:
        """Writes submitted.json."""
        make_folder(self.path, "--out")
        write_json(self.path / "submitted.json", {"job": job, "since": _now()})

    def start(
        self,
        run: Run,
        placement: Placement,
        arguments: list[str],
        logs: str,
        accepts: bool = False,
        **values,
    ) -> None:
        """Writes run.json, with this start added to its attempts, and the state "running".

        `accepts` is whether this start accepts changes, and `values` are more fields of run.json.
        """
        before, job = self.record(), placement.job
        attempts = before.get("attempts", [])
        if attempts and "state" not in attempts[-1]:
            attempts[-1].update(state=LOST, ended=self.state().get("heartbeat"))
        attempt = {
            "job": job,
            "restarts": placement.restarts,
            "step": placement.step,
            "hosts": hosts(),
            "nodes": placement.num_nodes,
            "processes": run.gpus_per_node,
            "ranks": f"ranks/{logs}",
            "started": _now(),
            "epoch_before": newest(self.checkpoints),
            "accepts": accepts,
        }
        self.write(run)
        self.note(
            command=["superclip", "train", *arguments],
            cwd=os.getcwd(),
            plan=run.as_dict(),
            data_check=None,
            set=run.set,
            versions=versions(*DEPENDS_ON),
            hosts=hosts(),
            environment=recorded_environment(),
            attempts=[*attempts, attempt],
            **values,
        )
        (self.path / NAME).unlink(missing_ok=True)  # run.json contains it now
        self._write_state(RUNNING, len(attempts) + 1, job=job, requeues=placement.restarts)

    def note(self, **values) -> None:
        """Writes values into run.json."""
        write_json(self.path / RECORD, self.record() | values)

    def beat(self, **values) -> None:
        """Writes into state.json that the run is alive, and its progress."""
        write_json(
            self.path / "state.json",
            {"state": RUNNING, **self.state(), "heartbeat": _now(), **values},
        )

    def note_refusal(self, error: str) -> None:
        """Writes into state.json that a start was refused; the run's own state stays."""
        write_json(
            self.path / "state.json", {**self.state(), "refused": {"since": _now(), "error": error}}
        )

    def end(
        self, state: str, error: str | None = None, then: Restart | Requeue | None = None
    ) -> None:
        """Writes how this start of the run ended and, if the run continues, how."""
        attempts = self.attempts or [{}]
        continues = {"next": None, "without": None}
        if then is not None:
            continues = {
                "next": type(then).__name__.lower(),
                "without": getattr(then, "without", "") or None,
            }
        self._write_state(state, len(attempts), error=error, **continues)
        ended = {"ended": _now(), "epoch_after": newest(self.checkpoints)}
        attempts[-1] |= {**ended, "state": state, "error": error, "again": then is not None}
        with _full_disk_allowed():
            self.note(attempts=attempts)

    def _write_state(self, state: str, num_starts: int, error: str | None = None, **values) -> None:
        """Writes state.json, on a full disk in place."""
        values |= {"state": state, "since": _now(), "error": error, "restarts": num_starts - 1}
        values |= {"epoch": newest(self.checkpoints), "heartbeat": _now(), "expected_end": None}
        before = {name: value for name, value in self.state().items() if name != "refused"}
        content = {**before, "next": None, "without": None, **values}
        file = self.path / "state.json"
        try:
            write_json(file, content)
        except OSError as error:
            if not is_full(error):
                raise
            with open(file, "r+") as opened:
                opened.write(json_text(content))
                opened.truncate()

    def prune(self, run: Run) -> None:
        """Removes the checkpoints that are neither among the newest nor to be kept, nor the best
        in validation."""
        found, best = checkpoints(self.checkpoints), best_epoch(self.path)
        complete = [epoch for epoch, path in found.items() if is_complete(path)]
        for epoch in complete[:-NUM_KEPT]:
            if not run.keeps(epoch) and (best is None or epoch != best.epoch):
                found[epoch].unlink()


@contextlib.contextmanager
def _full_disk_allowed():
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
