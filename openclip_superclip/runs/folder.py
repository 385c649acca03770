"""The folder of a run: OpenCLIP's logs and checkpoints, the records of the run and its state, a lock."""

import fcntl
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from ..checkpoints.resume import DEPENDS_ON
from ..checkpoints.run_outputs import checkpoints, is_complete, newest
from ..environment import versions
from ..errors import InputError
from ..files import check_results, content_digest, make_folder, read_json, write_json, write_text
from .recipe import WORDS, Recipe, read_recipe
from .run import DESCRIPTION, NUM_KEPT, Run
from .slurm import SETUP, Placement, has_job, hosts

RUNNING, PREEMPTED, FINISHED, FAILED = "running", "preempted", "finished", "failed"
LOST = "lost"  # its process was killed
PERIOD = 10  # seconds between two heartbeats of a run
STALE = 120  # seconds without a heartbeat after which a run is lost: network file systems can lag by a minute
RECORDED = re.compile(r"(CUDA|NCCL|SLURM|OMP|TORCH|PYTORCH|GLOO|FI|UCX|HOROVOD|MASTER)_|HF_HUB_OFFLINE$")
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|JWT|CREDENTIAL|AUTH", re.IGNORECASE)


def current_state(run: Path) -> dict:
    """Returns the content of state.json in a run's folder, {} if there is none.

    If it says `running` but the process or its heartbeat is gone, `state` is `lost` and `error` says why.
    """
    state = read_json(run / "state.json", default={})
    if state.get("state") != RUNNING:
        return state
    owner, heartbeat = read_json(run / "lock", default={}), state.get("heartbeat")
    if owner.get("host") == socket.gethostname() and not Path(f"/proc/{owner.get('pid')}").exists():
        problem = f"process {owner.get('pid')} on {owner['host']} is gone"
    elif not heartbeat or (datetime.now().astimezone() - datetime.fromisoformat(heartbeat)).total_seconds() > STALE:
        problem = "no heartbeat"
    else:
        return state
    error = f"{problem}: stopped without an error message; last heartbeat at {heartbeat}"
    return {**state, "state": LOST, "error": error}


def recorded_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the variables that influence a run, without secrets."""
    names = (name for name in environment if RECORDED.match(name) and not SECRET.search(name))
    return {name: environment[name] for name in sorted(names)}


class RunFolder:
    """RUN/, which is --logs PARENT --name NAME for OpenCLIP.

    A damaged state.json or run.json counts as missing: a run resumes from its newest checkpoint in any case.
    """

    def __init__(self, path: Path):
        if re.search(r"[*?\[\]]", str(path.absolute())):  # OpenCLIP would look for checkpoints elsewhere
            raise InputError(f"--out is {path}; expected a path without *, ? and brackets")
        self.path = path if path.name not in ("", "..") else path.resolve()  # OpenCLIP needs its name
        self.checkpoints = self.path / "checkpoints"

    def state(self) -> dict:
        """Returns the content of state.json, {} if there is none."""
        return read_json(self.path / "state.json", default={})

    def record(self) -> dict:
        """Returns the content of run.json, {} if there is none."""
        return read_json(self.path / "run.json", default={})

    def check_is_own(self) -> None:
        """Raises InputError if the folder contains files of a run's names that no run has written."""
        check_results(self.path, "--out", (DESCRIPTION, "recipe.yaml", "job.sh", SETUP), '"slice_steps"')

    def check_recipe(self, recipe: Recipe, advice: str = "give --out another folder, or --accept-changes") -> None:
        """Raises InputError if the folder contains a run of another recipe, which has begun or is in SLURM's queue."""
        differences = self._differences(recipe)
        if differences and ((self.path / "run.json").exists() or self.checkpoints.exists() or self._queued_job()):
            raise InputError(f"{self.path} contains a run of another recipe: {', '.join(differences)}; {advice}")

    def _differences(self, recipe: Recipe) -> list[str]:
        """Returns the fields in which the recipe differs from the folder's."""
        if not (self.path / "recipe.yaml").exists():
            return []
        there, given = read_recipe(str(self.path / "recipe.yaml")).as_dict(), recipe.as_dict()
        keys = [key for key in there | given if key not in WORDS and there.get(key) != given.get(key)]
        return [f"{key} is {there.get(key)} there and {given.get(key)} here" for key in keys]

    def check_plan(self, advice: str, **values: str) -> None:
        """Raises InputError if the folder's run has other values in its plan, such as `data`.

        Also if it is finished, and a table that it has read has changed since.
        """
        plan, tables = self.record().get("plan", {}), (self.record().get("data_check") or {}).get("tables", {})
        for name, value in values.items():
            if plan.get(name) not in (None, value):
                raise InputError(f"{self.path} contains a run with --{name} {plan[name]}, not {value}; {advice}")
        for path, digest in tables.items() if self.state().get("state") == FINISHED else ():
            if os.path.exists(path) and content_digest(Path(path)) != digest:
                raise InputError(f"{path} has changed since {self.path} was trained on it: {advice}")

    def _queued_job(self) -> str | None:
        """Returns the job that was submitted last, if SLURM has it or does not answer; None where SLURM is missing."""
        job = self.submitted_job()
        return job if job and shutil.which("squeue") and has_job(job) else None

    def write(self, run: Run) -> None:
        """Writes the run's description and, unless the folder contains it, its recipe."""
        make_folder(self.path, "--out")
        run.save(self.path)
        if not (self.path / "recipe.yaml").exists() or self._differences(run.recipe):
            write_text(self.path / "recipe.yaml", run.recipe.text)

    def check_is_free(self, placement: Placement) -> None:
        """Raises InputError if a job trains the run, or waits to, or if a process of another start trains it."""
        if job := self._queued_job():
            raise InputError(
                f"job {job} already trains {self.path}: scancel {job} ends it, or give --out another folder; if it has "
                f"ended, remove {self.path}/submitted.json"
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
        self, run: Run, placement: Placement, arguments: list[str], logs: str, changed: Sequence[str] = ()
    ) -> None:  # fmt: skip
        """Writes run.json, with this start added to its attempts, and the state "running".

        `changed` are the differences of this start from what the run began with.
        """
        before, job = self.record(), placement.job
        attempts = before.get("attempts", [])
        if attempts and "state" not in attempts[-1]:
            attempts[-1].update(state=LOST, ended=self.state().get("heartbeat"))
        changes = before.get("changes", [])
        if changed:
            changes = [*changes, {"when": _now(), "start": len(attempts), "changed": changed}]
        attempt = {
            "job": job, "restarts": placement.restarts, "step": placement.step, "hosts": hosts(),
            "nodes": placement.num_nodes, "processes": run.gpus_per_node, "ranks": f"ranks/{logs}",
            "started": _now(), "epoch_before": newest(self.checkpoints),
        }  # fmt: skip
        write_json(self.path / "run.json", {
            "command": ["superclip", "train", *arguments], "cwd": os.getcwd(), "plan": run.as_dict(),
            "data_check": None, "set": run.set, "versions": versions(*DEPENDS_ON),
            "hosts": hosts(), "environment": recorded_environment(), "changes": changes,
            "attempts": [*attempts, attempt],
        })  # fmt: skip
        self._write_state(RUNNING, job, num_starts=len(attempts) + 1)

    def note(self, **values) -> None:
        """Writes values into run.json."""
        write_json(self.path / "run.json", self.record() | values)

    def beat(self, **values) -> None:
        """Writes into state.json that the run is alive, and its progress."""
        write_json(self.path / "state.json", {"state": RUNNING, **self.state(), "heartbeat": _now(), **values})

    def note_refusal(self, error: str) -> None:
        """Writes into state.json that a start was refused; the run's own state stays."""
        write_json(self.path / "state.json", {**self.state(), "refused": {"since": _now(), "error": error}})

    def end(self, state: str, error: str | None = None, again: bool = False) -> None:
        """Writes how this start of the run ended; `again` if it failed and the run starts again."""
        record = self.record()
        attempts = record.get("attempts") or [{}]
        ended = {"ended": _now(), "epoch_after": newest(self.checkpoints)}
        attempts[-1] |= {**ended, "state": state, "error": error, "again": again}
        self._write_state(state, attempts[-1].get("job"), len(attempts), error)
        write_json(self.path / "run.json", {**record, "attempts": attempts})

    def _write_state(self, state: str, job: str | None, num_starts: int, error: str | None = None) -> None:
        values = {"state": state, "since": _now(), "job": job, "error": error, "restarts": num_starts - 1}
        values |= {"epoch": newest(self.checkpoints), "heartbeat": _now(), "expected_end": None}
        before = {name: value for name, value in self.state().items() if name != "refused"}
        write_json(self.path / "state.json", {**before, **values})

    def starts_without_a_slice(self) -> int:
        """Returns how many starts in a row, including this one, have not saved a slice.

        Earlier starts count if they failed and the run was started again, or if SLURM has requeued their job since.
        """
        *earlier, this = self.record().get("attempts") or [{}]
        reached, number = newest(self.checkpoints), 0
        for one in (this, *reversed(earlier)):
            requeued = this.get("job") and one.get("job") == this["job"] and one["restarts"] != this["restarts"]
            counts = one is this or one.get("again") or requeued
            if one.get("epoch_before") != reached or not counts:
                break
            number += 1
        return number

    def prune(self, run: Run) -> None:
        """Removes the checkpoints that are neither among the newest nor to be kept."""
        found = checkpoints(self.checkpoints)
        complete = [epoch for epoch, path in found.items() if is_complete(path)]
        for epoch in complete[:-NUM_KEPT]:
            if not run.keeps(epoch):
                found[epoch].unlink()


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


@contextmanager
def lock(path: Path, placement: Placement, folder: Path | None = None, flag: str = "--out") -> Iterator[None]:
    """Holds the lock, with its owner in the file; raises InputError, naming the owner, if another one is alive.

    A second file is locked with flock, which the kernel releases when the process ends. Some file
    systems lack flock or do not share it between machines; there squeue shows whether the owner's job is alive.
    `folder` is what is locked, by default the file's folder, and `flag` names it.
    """
    make_folder(path.parent, flag)
    with open(f"{path}.flock", "a") as held:
        owner = read_json(path, default={})
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = _is_alive(owner, placement, has_flock=True)
        except BlockingIOError:
            is_held = True
        except OSError:
            is_held = _is_alive(owner, placement, has_flock=False)
        if is_held:
            job = f"job {owner['job']}, " if owner.get("job") else ""
            who = f"{job}process {owner['pid']} on {owner['host']} since {owner['since']}" if owner else "a new process"
            raise InputError(
                f"{folder or path.parent} belongs to another run: {who}; wait for it, end it, or give {flag} another "
                f"folder; if it has ended, remove {path}*"
            )
        ours = {
            "job": placement.job, "restarts": placement.restarts, "host": socket.gethostname(), "pid": os.getpid(),
            "since": _now(),
        }  # fmt: skip
        write_json(path, ours)
        try:
            yield
        finally:
            if read_json(path, default={}) == ours:
                path.unlink(missing_ok=True)


def _is_alive(owner: dict, placement: Placement, has_flock: bool) -> bool:
    """Returns whether the lock's owner may be alive, although no process here holds the lock."""
    same_job = owner and owner["job"] is not None and owner["job"] == placement.job
    if not owner or (same_job and owner["restarts"] < placement.restarts):  # SLURM ended that start before this one
        return False
    if owner["host"] == socket.gethostname():
        return not has_flock and Path(f"/proc/{owner['pid']}").exists()
    if owner["job"] is None or same_job:
        return True
    return has_job(owner["job"])
