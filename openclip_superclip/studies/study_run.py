"""One run of a study: its recipe and folder, and its training by `superclip run`."""

import functools
import hashlib
import os
import shutil
import threading
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from ..data.shards import expand
from ..data.tables import is_table
from ..errors import InputError
from ..files import content_digest, make_folder, read_json, write_json
from ..runs.folder import FINISHED, RunFolder
from ..runs.plan import make_run
from ..runs.process import run_superclip
from ..runs.recipe import Recipe, read_recipe
from ..runs.run import DEFAULTS, Run, Settings
from .study import folder_name

UNNAMED = ("method", "seed", "chosen", "paper")  # fields that no run's name holds, or holds elsewhere
DATA = "data.json"  # in a run's folder: the digests of its data when it was trained


@dataclass(frozen=True)
class StudyRun:
    """What distinguishes one run of a study from another."""

    arm: str
    cell: str | None
    seed: int
    file: str  # the study's recipe
    set: tuple[tuple[str, str], ...]  # fields of the recipe with their values
    folder: Path
    split: str = "test"  # of the scenes that measure it; "tune" for trials

    @functools.cached_property
    def recipe(self) -> Recipe:
        return read_recipe(self.file, dict(self.set))

    def described(self, device: str, data: str | None, settings: Settings = DEFAULTS, **machines) -> Run:
        """Returns the run as `make_run` makes it."""
        return make_run(self.recipe, data=data, device=device, settings=settings, set_=dict(self.set), **machines)

    @property
    def state(self) -> dict:
        return RunFolder(self.folder).state()

    @property
    def is_finished(self) -> bool:
        return self.state.get("state") == FINISHED

    @property
    def cpu_seconds(self) -> float | None:
        """The CPU time of its training; None if a job trained it."""
        return read_json(self.folder / "cpu_seconds.json", default={}).get("cpu_seconds")

    def data(self, data: str | None) -> dict[str, str]:
        """Returns the paths that it trains on and is measured on, by their flags."""
        found = {"--data": data or self.recipe.shards, "--val-data": self.recipe.flags.get("val-data")}
        return {flag: path for flag, path in found.items() if path}

    def check_folder(self, device: str, data: str | None, advice: str) -> None:
        """Raises InputError, ended by the advice, if its folder holds a run of other settings, data or device."""
        folder = RunFolder(self.folder)
        folder.check_recipe(self.recipe, advice)
        plan = folder.record().get("plan", {})
        if plan and not (self.folder / "recipe.yaml").exists():
            raise InputError(f"{self.folder} holds a run without its recipe.yaml, which identifies it: put it back")
        noted = read_json(self.folder / DATA, default={})
        for flag, path in self.data(data).items():
            before = noted.get(flag, {})
            if before.get("content") not in (None, _digest(path)) and before["path"] == path:
                raise InputError(f"{self.folder} used {flag} {path}, which has changed since; {advice}")
        given = {"data": self.recipe.shards if data is None else data, "device": device}
        for name, value in given.items():
            if plan.get(name) not in (None, value):
                raise InputError(f"{self.folder} holds a run of --{name} {plan[name]}, not {value}; {advice}")

    def note_data(self, data: str | None) -> None:
        """Writes digests of its data into its folder, unless something was trained there."""
        if not (self.folder / DATA).exists() and not (self.folder / "run.json").exists():
            make_folder(self.folder, "--out")
            content = {flag: {"path": path, "content": _digest(path)} for flag, path in self.data(data).items()}
            write_json(self.folder / DATA, content)

    def train(self, device: str, data: str | None, stop: threading.Event, settings: Settings = DEFAULTS) -> None:
        """Trains it from where it stopped, unless it is finished, and adds up its CPU seconds.

        Raises InputError if it fails, with its last message, and if `stop` ends it.
        """
        if self.is_finished:
            return
        if is_table(data or self.recipe.shards):  # OpenCLIP would resume in another order
            shutil.rmtree(self.folder, ignore_errors=True)
        self.note_data(data)
        output = self.folder.with_name(f"{self.folder.name}.output")
        RunFolder(self.folder).write(self.described(device, data, settings))
        code, seconds = run_superclip(["run", str(self.folder)], output, device == "cpu", stop.is_set)
        if self.folder.is_dir():
            write_json(self.folder / "cpu_seconds.json", {"cpu_seconds": (self.cpu_seconds or 0.0) + seconds})
        if stop.is_set():
            raise InputError(f"{self.folder.name} was stopped")
        if code != 0:
            lines = [line for line in output.read_text(errors="replace").splitlines() if line.strip()]
            error = self.state.get("error") or " ".join(lines[-1:]) or "it printed nothing"
            raise InputError(f"{self.folder.name} failed: {' '.join(error.split())}; {output} holds more")
        output.unlink()


def run_name(common: Recipe, recipe: Recipe, unnamed: Set[str] = frozenset()) -> str:
    """Returns the name of a run's folder: its method, the fields that differ from `common`, and its seed.

    Fields of `unnamed`, which are equal in all runs of a study, are left out.
    """
    ours, theirs = _flat(recipe.as_dict()), _flat(common.as_dict())
    differ = [key for key in ours if key not in unnamed and (key not in theirs or ours[key] != theirs[key])]
    parts = [f"{key.rpartition('.')[2]}-{folder_name(str(ours[key]))}" for key in differ]
    return "_".join([recipe.method, *parts, f"seed{recipe.seed}"])


def _flat(values: dict, prefix: str = "") -> dict:
    """Returns the values with the fields of mappings as KEY.FIELD, as --set takes them."""
    flat: dict = {}
    for key, value in values.items():
        if key not in UNNAMED:
            flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _digest(path: str) -> str:
    """Returns a digest of data: of a table's text, or of the names and sizes of shards."""
    if is_table(path) and Path(path).is_file():
        return content_digest(Path(path))
    shards = [f"{shard} {os.path.getsize(shard) if os.path.exists(shard) else None}" for shard in expand(path)]
    return hashlib.sha256("\n".join(shards).encode("utf-8", "replace")).hexdigest()
