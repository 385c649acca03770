"""The folder of a run: OpenCLIP's logs and checkpoints, and beside them what was run and how it stands."""

import dataclasses
import json
import os
import re
import shlex
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from ..checkpoints.resume import DEPENDS_ON
from ..checkpoints.run_outputs import checkpoints, is_complete, newest
from ..environment import versions
from ..errors import InputError
from ..files import PACKAGE, make_folder, write_json, write_text
from .lock import lock
from .machines import Placement, hosts, my_jobs
from .plan import NUM_KEPT, Plan, with_table
from .recipe import WORDS, Recipe, read_recipe

RUNNING, PREEMPTED, FINISHED, FAILED = "running", "preempted", "finished", "failed"


LOST = "lost"  # of a run that nobody trains any more, and that could not say so


PERIOD = 10  # seconds between two heartbeats of a run


STALE = 120  # seconds after which a run without one is lost: network file systems show what others write after a minute


def told_state(run: Path) -> dict:
    """Returns what state.json of a run's folder says, nothing where there is none.

    Where it says `running` and its process is gone, or its heartbeat has stopped, `state` is `lost` and `error` says
    since when.
    """
    state = read_object(run / "state.json")
    if state.get("state") != RUNNING:
        return state
    heartbeat = state.get("heartbeat") or state.get("since")
    owner = read_object(run / "lock")
    if owner.get("host") == socket.gethostname() and not Path(f"/proc/{owner.get('pid')}").exists():
        who = f"process {owner.get('pid')} on {owner['host']} is gone"
    elif seconds_since(heartbeat) > STALE:
        who = "there is no heartbeat"
    else:
        return state
    return {**state, "state": LOST, "error": f"{who}, and could not say why: its last word is of {heartbeat}"}


def seconds_since(time: str | None) -> float:
    """Returns the age of a time as state.json writes it, 0 where it is none."""
    try:
        return (datetime.now().astimezone() - datetime.fromisoformat(time)).total_seconds()
    except (TypeError, ValueError):
        return 0.0


def read_object(path: Path) -> dict:
    """Returns what a JSON file holds, nothing where it cannot be read or holds no object."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


RECORDED = re.compile(r"(CUDA|NCCL|SLURM|OMP|TORCH|PYTORCH|GLOO|FI|UCX|HOROVOD|MASTER)_|HF_HUB_OFFLINE$")


SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|JWT|CREDENTIAL|AUTH", re.IGNORECASE)


def what_runs(plan: Plan, arguments: list[str], set_: Mapping[str, str]) -> dict:
    """Returns what run.json tells of a run, `arguments` being those of `superclip train`."""
    return {
        "command": ["superclip", "train", *arguments],
        "cwd": os.getcwd(),
        "plan": plan.as_dict(),
        "data_check": None,
        "set": dict(set_),
        "versions": versions(*DEPENDS_ON),
        "git": git_commit(),
        "hosts": hosts(),
        "environment": recorded_environment(),
    }


def which_start(placement: Placement, plan: Plan, logs: str, launcher: list[str]) -> dict:
    """Returns what run.json tells of one start of a run."""
    return {
        "job": placement.job,
        "restarts": placement.restarts,
        "step": placement.step,
        "hosts": hosts(),
        "nodes": placement.num_nodes,
        "processes": plan.gpus_per_node,
        "ranks": f"ranks/{logs}",
        "launcher": shlex.join(launcher),
    }


def git_commit() -> str | None:
    """Returns the commit of the checkout that this package runs from, with "-dirty" where files differ from it."""
    checkout = PACKAGE.parent
    if not (checkout / ".git").exists():
        return None
    git = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def recorded_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the variables that decide how a run goes, and no secret."""
    names = (name for name in environment if RECORDED.match(name) and not SECRET.search(name))
    return {name: environment[name] for name in sorted(names)}


_ADVICE = {  # where such a file is broken
    "state.json": "remove it; the same command resumes from the newest checkpoint",
    "run.json": "move it away; the same command resumes from the newest checkpoint, and its record begins anew",
    "submitted.json": "remove it, where no job that trains the run is in the queue",
}


class RunFolder:
    """RUN/, which OpenCLIP knows as --logs PARENT --name NAME."""

    def __init__(self, path: Path):
        if re.search(r"[*?\[\]]", str(path.absolute())):  # OpenCLIP would look for checkpoints elsewhere
            raise InputError(f"--out is {path}; expected a path without *, ? and brackets")
        self.path = path if path.name not in ("", "..") else path.resolve()  # OpenCLIP is told its name
        self.checkpoints = self.path / "checkpoints"

    def openclip_flags(self) -> list[str]:
        """Returns the flags that make OpenCLIP write here, and resume from the newest checkpoint."""
        where = ["--logs", str(self.path.parent), "--name", self.path.name]
        return [*where, "--resume", "latest", "--save-frequency", "1"]

    def state(self) -> dict:
        """Returns what state.json holds, nothing where there is none."""
        return self._read("state.json")

    def num_starts(self) -> int:
        return len(self.record().get("attempts", []))

    def record(self) -> dict:
        """Returns what run.json holds, nothing where there is none."""
        return self._read("run.json")

    @contextmanager
    def lock(self, placement: Placement) -> Iterator[Callable[[], None]]:
        """Holds the folder for one process, as `run_lock.lock` does."""
        make_folder(self.path, "--out")
        with lock(self.path / "lock", placement) as check:
            yield check

    def check_recipe(self, recipe: Recipe, advice: str = "give --out another folder, or --accept-changes") -> None:
        """Raises InputError where the folder holds a run of another recipe, or a job that is to train it waits."""
        differences = self._differences(recipe)
        started = (self.path / "run.json").exists() or self.checkpoints.exists()
        if differences and (started or self._job_in_queue()):
            raise InputError(f"{self.path} holds a run of another recipe: {', '.join(differences)}; {advice}")

    def write_recipe(self, recipe: Recipe) -> None:
        """Writes the recipe, where the folder does not hold it, in the place of one that no run has trained."""
        make_folder(self.path, "--out")
        if not (self.path / "recipe.yaml").exists() or self._differences(recipe):
            write_text(self.path / "recipe.yaml", recipe.text)

    def note_submission(self, job: str) -> None:
        """Writes into submitted.json the job of SLURM that is to train the run, ARRAY_TASK of an array's task."""
        make_folder(self.path, "--out")
        write_json(self.path / "submitted.json", {"job": job, "since": _now()})

    def submitted_job(self) -> str | None:
        """Returns the job that was submitted last."""
        return self._read("submitted.json").get("job")

    def check_queue(self) -> None:
        """Raises InputError where a job that is to train the run waits or runs."""
        job = self._job_in_queue()
        if job:
            raise InputError(
                f"job {job} trains {self.path} already: scancel {job} ends it, or give --out another folder"
            )

    def _job_in_queue(self) -> str | None:
        """Returns the submitted job where SLURM has it in its queue, or cannot be asked."""
        job = self.submitted_job()
        queue = my_jobs() if job else {}
        return job if job and (queue is None or job in queue) else None

    def _differences(self, recipe: Recipe) -> list[str]:
        """Returns what tells the recipe from the folder's, nothing where that has none."""
        if not (self.path / "recipe.yaml").exists():
            return []
        there, given = read_recipe(str(self.path / "recipe.yaml")).as_dict(), recipe.as_dict()
        keys = [key for key in there | given if key not in WORDS and there.get(key) != given.get(key)]
        return [f"{key} is {there.get(key)} there and {given.get(key)} here" for key in keys]

    def start(self, record: dict, attempt: dict) -> None:
        """Writes run.json, with `attempt` added to those that it tells of, and the state "running"."""
        attempts = self.record().get("attempts", [])
        if attempts and "state" not in attempts[-1]:  # it was killed
            attempts[-1].update(state=LOST, ended=told_state(self.path).get("heartbeat"))
        before = {"started": _now(), "epoch_before": newest(self.checkpoints)}
        changes = self.record().get("changes", [])
        attempts = [*attempts, {**attempt, **before}]
        write_json(self.path / "run.json", {**record, "changes": changes, "attempts": attempts})
        self._write_state(RUNNING, attempt["job"])

    def note(self, **values) -> None:
        """Writes into run.json what has been found out."""
        write_json(self.path / "run.json", self.record() | values)

    def beat(self, **values) -> None:
        """Writes into state.json that the run lives, and how far it is."""
        write_json(self.path / "state.json", {**self.state(), "heartbeat": _now(), **values})

    def note_changes(self, lines: list[str]) -> None:
        """Writes into run.json in what this start differs from what the run began with."""
        changes = self.record().get("changes", [])
        self.note(changes=[*changes, {"when": _now(), "start": self.num_starts() - 1, "changed": lines}])

    def note_epoch(self, epoch: int) -> bool:
        """Writes into state.json that the slice is trained, and saved; tells whether that is new."""
        state = self.state()
        new = state["epoch"] != epoch
        if new:
            write_json(self.path / "state.json", {**state, "epoch": epoch})
        return new

    def end(self, state: str, error: str | None = None, again: bool = False) -> None:
        """Writes how this start of the run ended; `again` says that it failed, and another one is to follow."""
        record = self.record()
        last = record["attempts"][-1]
        last.update(ended=_now(), epoch_after=newest(self.checkpoints), state=state, error=error, again=again)
        self._write_state(state, last["job"], error)
        write_json(self.path / "run.json", record)

    def check_progress(self, job: str | None, starts: int) -> None:
        """Raises InputError where the job's last `starts` starts before this one have not saved a slice."""
        earlier = self.record()["attempts"][:-1][-starts:]
        reached = newest(self.checkpoints)
        if job and [(one["job"], one["epoch_before"]) for one in earlier] == [(job, reached)] * starts:
            raise InputError(
                f"job {job} was started {starts} times and stopped before a slice was trained: give it more --time, or "
                "the recipe more slices"
            )

    def failures_without_a_slice(self) -> int:
        """Returns how many starts in a row, this one among them, have failed and saved no slice."""
        reached, number = newest(self.checkpoints), 0
        *earlier, this = self.record()["attempts"]
        for one in (this, *reversed(earlier)):
            if one["epoch_before"] != reached or (one is not this and not one.get("again")):
                break
            number += 1
        return number

    def _write_state(self, state: str, job: str | None, error: str | None = None) -> None:
        values = {"state": state, "since": _now(), "job": job, "error": error, "restarts": self.num_starts() - 1}
        values |= {"epoch": newest(self.checkpoints), "heartbeat": _now(), "note": None, "expected_end": None}
        write_json(self.path / "state.json", {**self.state(), **values})

    def _read(self, name: str) -> dict:
        path = self.path / name
        try:
            values = json.loads(path.read_text()) if path.exists() else {}
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({' '.join(str(error).split())}): {_ADVICE[name]}") from None
        if not isinstance(values, dict):
            raise InputError(f"{path} holds no mapping: {_ADVICE[name]}")
        return values


def recipe_and_folder(
    file: str, set_: Mapping[str, str], out: Path | None, data: str | None = None
) -> tuple[Recipe, RunFolder]:
    """Returns a recipe, with other values where they are set, and the folder of its run: runs/NAME unless given."""
    recipe = read_recipe(file, with_table(file, set_, data))
    folder = RunFolder(out or Path("runs") / recipe.name)
    if Path(file).absolute() == (folder.path / "recipe.yaml").absolute():  # a copy that `superclip submit` left
        recipe = dataclasses.replace(recipe, name=folder.path.name)
    return recipe, folder


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def prune(folder: Path, plan: Plan) -> list[Path]:
    """Removes the checkpoints that are neither among the newest nor to be kept, and returns them."""
    complete = [epoch for epoch, path in checkpoints(folder).items() if is_complete(path)]
    found = checkpoints(folder)
    old = [found[epoch] for epoch in complete[:-NUM_KEPT] if not plan.keeps(epoch)]
    for path in old:
        path.unlink()
    return old
