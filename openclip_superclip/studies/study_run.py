"""One run of a study: its recipe and folder, and its training by `superclip run`."""

import functools
import re
import shutil
import threading
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from ..data.tables import is_table
from ..errors import InputError
from ..files import read_json, write_json
from ..runs.folder import FINISHED, RunFolder
from ..runs.plan import make_run
from ..runs.process import run_superclip
from ..runs.recipe import Recipe, read_recipe
from ..runs.run import DEFAULTS, Run, Settings

UNNAMED = ("method", "seed", "chosen", "paper")  # fields that are not in a run's name, or in another place of it


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

    def train(self, device: str, data: str | None, stop: threading.Event, settings: Settings = DEFAULTS) -> None:
        """Trains it from its last checkpoint, unless it is finished, and adds up its CPU seconds.

        Raises InputError if it fails, with its last message, and if `stop` ends it.
        """
        if self.is_finished:
            return
        if is_table(data or self.recipe.shards):  # OpenCLIP would resume in another order
            shutil.rmtree(self.folder, ignore_errors=True)
        output = self.folder.with_name(f"{self.folder.name}.output")
        RunFolder(self.folder).write(self.described(device, data, settings))
        code, seconds = run_superclip(["run", str(self.folder)], output, device == "cpu", stop.is_set)
        if self.folder.is_dir():  # a run that was refused has none
            write_json(self.folder / "cpu_seconds.json", {"cpu_seconds": (self.cpu_seconds or 0.0) + seconds})
        if stop.is_set():
            raise InputError(f"{self.folder.name} was stopped")
        if code != 0:
            error = self.state.get("error") or last_line(output)
            raise InputError(f"{self.folder.name} failed: {' '.join(error.split())}; see {output}")
        output.unlink()


def last_line(output: Path) -> str:
    """Returns the last line of a file that is not empty."""
    lines = [line for line in output.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def run_name(common: Recipe, recipe: Recipe, unnamed: Set[str] = frozenset()) -> str:
    """Returns the name of a run's folder: its method, the fields that differ from `common`, and its seed.

    Fields of `unnamed`, which are equal in all runs of a study, are left out.
    """
    ours, theirs = _flat(recipe.as_dict()), _flat(common.as_dict())
    differ = [key for key in ours if key not in unnamed and (key not in theirs or ours[key] != theirs[key])]
    values = {key: re.sub(r"[^\w.-]|_", "-", str(ours[key])).lower() for key in differ}
    parts = [f"{key.rpartition('.')[2]}-{value}" for key, value in values.items()]
    return "_".join([recipe.method, *parts, f"seed{recipe.seed}"])


def _flat(values: dict, prefix: str = "") -> dict:
    """Returns the values with the fields of mappings as KEY.FIELD, as --set takes them."""
    flat: dict = {}
    for key, value in values.items():
        if key not in UNNAMED:
            flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
