"""The folder of a run: OpenCLIP's logs and checkpoints, the records of what was run and how it is going, a lock."""

import fcntl
import os
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from ..checkpoints.resume import DEPENDS_ON
from ..checkpoints.run_outputs import checkpoints, is_complete, newest
from ..environment import versions
from ..errors import InputError
from ..files import make_folder, read_json, write_json, write_text
from .recipe import WORDS, Recipe, read_recipe
from .run import NUM_KEPT, Run
from .slurm import Placement, hosts, my_jobs

RUNNING, PREEMPTED, FINISHED, FAILED = "running", "preempted", "finished", "failed"
LOST = "lost"  # of a run that nobody trains any more and that could not record why
PERIOD = 10  # seconds between two heartbeats of a run
STALE = 120  # seconds without one after which a run is lost: network file systems may show a file a minute late
RECORDED = re.compile(r"(CUDA|NCCL|SLURM|OMP|TORCH|PYTORCH|GLOO|FI|UCX|HOROVOD|MASTER)_|HF_HUB_OFFLINE$")
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|JWT|CREDENTIAL|AUTH", re.IGNORECASE)


def current_state(run: Path) -> dict:
    """Returns what state.json of a run's folder holds, nothing if there is none.

    If it says `running` and its process is gone, or its heartbeat has stopped, `state` is `lost` and `error` gives the
    time of the last heartbeat.
    """
    state = read_json(run / "state.json", default={})
    if state.get("state") != RUNNING:
        return state
    heartbeat = state.get("heartbeat") or state.get("since")
    owner = read_json(run / "lock", default={})
    if owner.get("host") == socket.gethostname() and not Path(f"/proc/{owner.get('pid')}").exists():
        problem = f"process {owner.get('pid')} on {owner['host']} is gone"
    elif seconds_since(heartbeat) > STALE:
        problem = "no heartbeat"
    else:
        return state
    error = f"{problem}: stopped without an error message; last heartbeat at {heartbeat}"
    return {**state, "state": LOST, "error": error}


def seconds_since(time: str | None) -> float:
    """Returns the age of a time as state.json holds it, 0 if it is none."""
    try:
        return (datetime.now().astimezone() - datetime.fromisoformat(time)).total_seconds()
    except (TypeError, ValueError):
        return 0.0


def recorded_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the variables that influence a run, without secrets."""
    names = (name for name in environment if RECORDED.match(name) and not SECRET.search(name))
    return {name: environment[name] for name in sorted(names)}


class RunFolder:
    """RUN/, which is --logs PARENT --name NAME for OpenCLIP.

    A broken state.json or run.json, as after a full disk or a power cut, counts as missing: the checkpoints alone
    decide where a run resumes.
    """

    def __init__(self, path: Path):
        if re.search(r"[*?\[\]]", str(path.absolute())):  # OpenCLIP would look for checkpoints elsewhere
            raise InputError(f"--out is {path}; expected a path without *, ? and brackets")
        self.path = path if path.name not in ("", "..") else path.resolve()  # OpenCLIP needs its name
        self.checkpoints = self.path / "checkpoints"

    def openclip_flags(self) -> list[str]:
        """Returns the flags that make OpenCLIP write here, and resume from the newest checkpoint."""
        where = ["--logs", str(self.path.parent), "--name", self.path.name]
        return [*where, "--resume", "latest", "--save-frequency", "1"]

    def state(self) -> dict:
        """Returns what state.json holds, nothing if there is none."""
        return read_json(self.path / "state.json", default={})

    def record(self) -> dict:
        """Returns what run.json holds, nothing if there is none."""
        return read_json(self.path / "run.json", default={})

    def num_starts(self) -> int:
        return max(len(self.record().get("attempts", [])), len(list(self.path.glob("ranks/local-*"))))

    @contextmanager
    def lock(self, placement: Placement) -> Iterator[None]:
        """Holds the folder for one process, as `lock` does."""
        make_folder(self.path, "--out")
        with lock(self.path / "lock", placement):
            yield

    def check_recipe(self, recipe: Recipe, advice: str = "give --out another folder, or --accept-changes") -> None:
        """Raises InputError if the folder holds a run of another recipe, or a job that will train it waits."""
        differences = self._differences(recipe)
        started = (self.path / "run.json").exists() or self.checkpoints.exists()
        if differences and (started or self._job_in_queue()):
            raise InputError(f"{self.path} holds a run of another recipe: {', '.join(differences)}; {advice}")

    def write(self, run: Run) -> None:
        """Writes the run's description, and its recipe unless the folder holds it."""
        make_folder(self.path, "--out")
        if not (self.path / "recipe.yaml").exists() or self._differences(run.recipe):
            write_text(self.path / "recipe.yaml", run.recipe.text)
        run.save(self.path)

    def _differences(self, recipe: Recipe) -> list[str]:
        """Returns the fields in which the recipe differs from the folder's, nothing if that has none."""
        if not (self.path / "recipe.yaml").exists():
            return []
        there, given = read_recipe(str(self.path / "recipe.yaml")).as_dict(), recipe.as_dict()
        keys = [key for key in there | given if key not in WORDS and there.get(key) != given.get(key)]
        return [f"{key} is {there.get(key)} there and {given.get(key)} here" for key in keys]

    def note_submission(self, job: str) -> None:
        """Writes into submitted.json the job of SLURM that will train the run, ARRAY_TASK of an array's task."""
        make_folder(self.path, "--out")
        write_json(self.path / "submitted.json", {"job": job, "since": _now()})

    def submitted_job(self) -> str | None:
        """Returns the job that was submitted last."""
        return read_json(self.path / "submitted.json", default={}).get("job")

    def check_queue(self) -> None:
        """Raises InputError if a job that will train the run waits or runs."""
        job = self._job_in_queue()
        if job:
            raise InputError(
                f"job {job} trains {self.path} already: scancel {job} ends it, or give --out another folder"
            )

    def _job_in_queue(self) -> str | None:
        """Returns the submitted job if SLURM has it in its queue, or cannot be asked."""
        job = self.submitted_job()
        queue = my_jobs() if job else {}
        return job if job and (queue is None or job in queue) else None

    def start(self, run: Run, placement: Placement, arguments: list[str], logs: str) -> None:
        """Writes run.json, with this start added to its attempts, and the state "running"."""
        before, job = self.record(), placement.job
        attempts = before.get("attempts", [])
        if attempts and "state" not in attempts[-1]:  # it was killed
            attempts[-1].update(state=LOST, ended=current_state(self.path).get("heartbeat"))
        attempt = {
            "job": job, "restarts": placement.restarts, "step": placement.step, "hosts": hosts(),
            "nodes": placement.num_nodes, "processes": run.gpus_per_node, "ranks": f"ranks/{logs}",
            "started": _now(), "epoch_before": newest(self.checkpoints),
        }  # fmt: skip
        write_json(self.path / "run.json", {
            "command": ["superclip", "train", *arguments], "cwd": os.getcwd(), "plan": run.as_dict(),
            "data_check": None, "set": run.set, "versions": versions(*DEPENDS_ON),
            "hosts": hosts(), "environment": recorded_environment(), "changes": before.get("changes", []),
            "attempts": [*attempts, attempt],
        })  # fmt: skip
        self._write_state(RUNNING, job)

    def note(self, **values) -> None:
        """Writes values into run.json."""
        write_json(self.path / "run.json", self.record() | values)

    def beat(self, **values) -> None:
        """Writes into state.json that the run is alive, and its progress."""
        write_json(self.path / "state.json", {"state": RUNNING, **self.state(), "heartbeat": _now(), **values})

    def note_changes(self, lines: list[str]) -> None:
        """Writes into run.json the differences of this start from what the run began with."""
        changes = self.record().get("changes", [])
        self.note(changes=[*changes, {"when": _now(), "start": self.num_starts() - 1, "changed": lines}])

    def note_refusal(self, error: str) -> None:
        """Writes into state.json that a start was refused; the run's own state stays."""
        write_json(self.path / "state.json", {**self.state(), "refused": {"since": _now(), "error": error}})

    def note_epoch(self, epoch: int) -> bool:
        """Writes into state.json that the slice is trained and saved; returns whether that is new."""
        state = self.state()
        new = state.get("epoch") != epoch
        if new:
            write_json(self.path / "state.json", {**state, "epoch": epoch})
        return new

    def end(self, state: str, error: str | None = None, again: bool = False) -> None:
        """Writes how this start of the run ended; `again` if it failed and another one follows."""
        record = self.record()
        attempts = record.get("attempts") or [{}]
        ended = {"ended": _now(), "epoch_after": newest(self.checkpoints)}
        attempts[-1] |= {**ended, "state": state, "error": error, "again": again}
        self._write_state(state, attempts[-1].get("job"), error)
        write_json(self.path / "run.json", {**record, "attempts": attempts})

    def check_progress(self, job: str | None, starts: int) -> None:
        """Raises InputError if the job's last `starts` starts before this one have not saved a slice."""
        earlier = self.record()["attempts"][:-1][-starts:]
        reached = newest(self.checkpoints)
        if job and [(one["job"], one["epoch_before"]) for one in earlier] == [(job, reached)] * starts:
            raise InputError(
                f"job {job} was started {starts} times and stopped before a slice was trained: give it more --time, or "
                "the recipe more slices"
            )

    def failures_without_a_slice(self) -> int:
        """Returns how many starts in a row, including this one, have failed and saved no slice."""
        reached, number = newest(self.checkpoints), 0
        *earlier, this = self.record()["attempts"]
        for one in (this, *reversed(earlier)):
            if one["epoch_before"] != reached or (one is not this and not one.get("again")):
                break
            number += 1
        return number

    def _write_state(self, state: str, job: str | None, error: str | None = None) -> None:
        values = {"state": state, "since": _now(), "job": job, "error": error, "restarts": self.num_starts() - 1}
        values |= {"epoch": newest(self.checkpoints), "heartbeat": _now(), "expected_end": None}
        before = {name: value for name, value in self.state().items() if name != "refused"}
        write_json(self.path / "state.json", {**before, **values})

    def prune(self, run: Run) -> list[Path]:
        """Removes the checkpoints that are neither among the newest nor to be kept, and returns them."""
        complete = [epoch for epoch, path in checkpoints(self.checkpoints).items() if is_complete(path)]
        found = checkpoints(self.checkpoints)
        old = [found[epoch] for epoch in complete[:-NUM_KEPT] if not run.keeps(epoch)]
        for path in old:
            path.unlink()
        return old


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


@contextmanager
def lock(path: Path, placement: Placement, folder: Path | None = None, flag: str = "--out") -> Iterator[None]:
    """Holds the lock, whose file names its owner; raises InputError, naming the owner, if another one is alive.

    A process on this machine also holds a second file with flock, which the kernel releases when the process ends. Not
    every file system has flock, or shows it to other machines, so SLURM is asked for the owner's job.

    Args:
        path: of the lock's file.
        folder, flag: what is locked, by default the file's folder, and the flag that names it.
    """
    with open(f"{path}.flock", "a") as held:
        owner = read_json(path, default={})
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            state = _state_of(owner, placement, is_locked=True)
        except BlockingIOError:
            state = "which runs"
        except OSError:  # a file system without flock
            state = _state_of(owner, placement, is_locked=False)
        if state:
            job = f"job {owner['job']}, " if owner.get("job") else ""
            who = f"{job}process {owner['pid']} on {owner['host']} since {owner['since']}" if owner else "a new process"
            raise InputError(
                f"{folder or path.parent} belongs to another run: {who} ({state}); wait for it, end it, or give {flag} "
                f"another folder; if it is surely gone, remove {path}*"
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


def _state_of(owner: dict, placement: Placement, is_locked: bool) -> str:
    """Returns in what state the lock's owner may be alive, though nothing here holds it; "" if it is gone."""
    same_job = owner and owner["job"] is not None and owner["job"] == placement.job
    if not owner or (same_job and owner["restarts"] < placement.restarts):  # SLURM ended that start before this one
        return ""
    if owner["host"] == socket.gethostname():
        return "which runs" if not is_locked and Path(f"/proc/{owner['pid']}").exists() else ""
    if owner["job"] is None:
        return "another machine, where nothing can be asked"
    if same_job:
        return "another step of this job"
    return "" if _has_ended(owner["job"]) else "which SLURM still knows, or cannot be asked about"


def _has_ended(job: str) -> bool:
    """Returns whether SLURM says that it has no such job."""
    try:
        asked = subprocess.run(["squeue", "--noheader", "--format=%T", "--jobs", job], capture_output=True, text=True)
    except OSError:
        return False
    return not asked.stdout.strip() if asked.returncode == 0 else "Invalid job id" in asked.stderr
