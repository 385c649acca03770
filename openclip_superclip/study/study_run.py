"""One run of a study: `superclip run` in a process of its own, then its measures."""

import functools
import hashlib
import os
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

from ..atomic_files import make_folder, write_json
from ..checkpoints.file_identity import content_digest
from ..checkpoints.training_log import read_log
from ..data.shard_pattern import expand
from ..data.table_columns import is_table_file
from ..errors import InputError
from ..planning.recipe_file import read_recipe
from ..running.checkpoint_files import checkpoints, is_whole
from ..running.run_folder import RunFolder
from ..running.run_state import FINISHED, read_object
from ..running.superclip_process import run_superclip
from ..versions import versions
from .dense_measures import DENSE_SCENES, measure_dense
from .study_file import MEASURES, OF_SCENES

DATA = "data.json"  # in a run's folder: what its data held when it was trained
PACKAGES = ("openclip-superclip", "open_clip_torch", "torch", "webdataset", "numpy", "pillow")


@dataclass(frozen=True)
class StudyRun:
    """What tells one run of a study from another."""

    arm: str
    cell: str | None
    seed: int
    recipe: str
    set: tuple[tuple[str, str], ...]  # fields of the recipe with their values
    folder: Path
    split: str = "test"  # of the scenes that measure it: "tune" where a learning rate is chosen

    def command(self, device: str, data: str | None, more: Sequence[str] = ()) -> list[str]:
        """Returns the arguments of `superclip` that train it, `more` options of `superclip run` among them."""
        settings = [part for field, value in self.set for part in ("--set", f"{field}={value}")]
        where = ["--data", data] if data else []
        return ["run", self.recipe, *settings, *where, "--device", device, "--out", str(self.folder), *more]


def check_folder(run: StudyRun, device: str, data: str | None, advice: str) -> None:
    """Raises InputError, ended by the advice, where the run's folder holds a run of other settings, data or device."""
    folder = RunFolder(run.folder)
    recipe = read_recipe(run.recipe, dict(run.set))
    folder.check_recipe(recipe, advice)
    there = folder.record().get("plan", {})
    if there and not (run.folder / "recipe.yaml").exists():
        raise InputError(f"{run.folder} holds a run without its recipe.yaml, which tells what it is: put it back")
    kept = read_object(run.folder / DATA)
    for flag, path in _data(run, data).items():
        if kept.get(flag, {}).get("content") not in (None, _content(path)) and kept[flag]["path"] == path:
            raise InputError(f"{run.folder} is of {flag} {path} as it was, and that has changed since; {advice}")
    for flag, found, given in (
        ("--data", there.get("data"), recipe.shards if data is None else data),
        ("--device", there.get("device"), device),
    ):
        if found is not None and found != given:
            raise InputError(f"{run.folder} holds a run of {flag} {found}, not {given}; {advice}")


def note_data(run: StudyRun, data: str | None) -> None:
    """Writes into the run's folder what its data holds, where nothing is trained there yet."""
    if not (run.folder / DATA).exists() and not (run.folder / "run.json").exists():
        make_folder(run.folder, "--out")
        told = {flag: {"path": path, "content": _content(path)} for flag, path in _data(run, data).items()}
        write_json(run.folder / DATA, told)


def _data(run: StudyRun, data: str | None) -> dict[str, str]:
    """Returns what a run trains on and is measured on, by their flags."""
    recipe = read_recipe(run.recipe, dict(run.set))
    found = {"--data": data or recipe.shards, "--val-data": recipe.flags.get("val-data")}
    return {flag: path for flag, path in found.items() if path}


@functools.cache
def _content(path: str) -> str:
    """Returns what tells data from other data: of a table its text, of shards their names and sizes."""
    if is_table_file(path) and Path(path).is_file():
        return content_digest(Path(path))
    shards = [f"{shard} {os.path.getsize(shard) if os.path.exists(shard) else None}" for shard in expand(path)]
    return hashlib.sha256("\n".join(shards).encode("utf-8", "replace")).hexdigest()


def is_finished(run: StudyRun) -> bool:
    return _state(run).get("state") == FINISHED


def unfinished(run: StudyRun) -> str | None:
    """Returns a run's name and how it stands, None where it is finished."""
    if is_finished(run):
        return None
    state = _state(run)
    error = f": {' '.join(state['error'].split())}" if state.get("error") else ""
    return f"{run.folder.name} ({state.get('state', 'not started')}{error})"


def train(run: StudyRun, device: str, data: str | None, stop: threading.Event, more: Sequence[str] = ()) -> None:
    """Trains a run from where it stopped; a finished one is left alone. Its CPU seconds are added to what they were.

    Args:
        more: options of `superclip run`.

    Raises InputError, with what the run last said, where it fails, and where `stop` ends it.
    """
    if is_finished(run):
        return
    if is_table_file(data or read_recipe(run.recipe, dict(run.set)).shards):  # OpenCLIP would go on in another order
        shutil.rmtree(run.folder, ignore_errors=True)
    note_data(run, data)
    output = run.folder.with_name(f"{run.folder.name}.output")
    code, seconds = run_superclip(run.command(device, data, more), output, device == "cpu", stop.is_set)
    if run.folder.is_dir():
        write_json(run.folder / "cpu_seconds.json", {"cpu_seconds": (_cpu_seconds(run) or 0.0) + seconds})
    if stop.is_set():
        raise InputError(f"{run.folder.name} was stopped")
    if code != 0:
        said = [line for line in output.read_text(errors="replace").splitlines() if line.strip()]
        error = _state(run).get("error") or " ".join(said[-1:]) or "it said nothing"
        raise InputError(f"{run.folder.name} failed: {' '.join(error.split())}; {output} holds more")
    output.unlink()


def measured(run: StudyRun, measures: str, scenes: Path, stop: threading.Event) -> dict:
    """Returns what a trained run showed: its weights, CPU seconds and measures.

    It is measured now, unless the same versions have measured the same weights. InputError where `stop` ends that.

    Args:
        scenes: the folder of the demo's model and scenes.
    """
    weights = _last_checkpoint(run)
    kept = run.folder / f"{measures}-{run.split}.json"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
    found = read_object(kept)
    of_this = {
        "run": run.folder.name, "checkpoint": digest, "cpu_seconds": _cpu_seconds(run), "versions": versions(*PACKAGES)
    }  # fmt: skip
    is_of_this = all(found.get(name) == of_this[name] for name in ("checkpoint", "versions"))
    if not is_of_this or not _are_measures(found.get("measures")):
        try:
            found["measures"] = _measure(run, weights, measures, scenes, stop)
        except (RuntimeError, EOFError, UnpicklingError) as error:
            if is_whole(weights):  # it is not the checkpoint that is at fault
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{weights} cannot be read ({reason}): remove {run.folder}, and the same command trains it"
            ) from error
        write_json(kept, {**of_this, "measures": found["measures"]})
    return {**of_this, "measures": found["measures"]}


def _are_measures(found: object) -> bool:
    return isinstance(found, dict) and bool(found) and all(type(value) in (int, float) for value in found.values())


def samples_seen(folder: Path) -> int:
    """Returns how many samples the run of a folder has trained on so far."""
    log = folder / "out.log"
    curve = read_log(log) if log.exists() else []
    return curve[-1]["samples"] if curve else 0


def _measure(run: StudyRun, weights: Path, measures: str, scenes: Path, stop: threading.Event) -> dict[str, float]:
    if measures == "dense-scenes":
        return measure_dense(weights, scenes / DENSE_SCENES, stop.is_set)
    if MEASURES[measures] == OF_SCENES:
        from ..demo.measures import measure
        from ..demo.scenes import UNSEEN_DESIGNERS
        from ..demo.training_data import SECOND_DRAW
        from .trained_model import open_trained

        model = read_recipe(str(run.folder / "recipe.yaml")).model
        second = SECOND_DRAW.designers
        shown = {
            "unseen-drawings": {"designers": UNSEEN_DESIGNERS},
            "second-draw": {"designers": second, "trained_on": second, "seed": SECOND_DRAW.seed},
        }
        return measure(*open_trained(weights, model), split=run.split, **shown.get(measures, {}))
    from ..report.run_scores import of_training

    return {name.removesuffix(" (training's own)"): score for name, score in of_training(run.folder).items()}


def _last_checkpoint(run: StudyRun) -> Path:
    found = checkpoints(run.folder / "checkpoints")
    last = RunFolder(run.folder).record().get("plan", {}).get("epochs") or max(found, default=None)
    if last not in found:
        missing = f"its last checkpoint, epoch_{last}.pt" if last else "a checkpoint"
        raise InputError(
            f"{run.folder} is finished and lacks {missing}: put it back, or remove the folder, and the same command "
            "trains it"
        )
    return found[last]


def _state(run: StudyRun) -> dict:
    return RunFolder(run.folder).state()


def _cpu_seconds(run: StudyRun) -> float | None:
    """Returns the CPU time that training took; None where a job trained, which nobody clocks."""
    return read_object(run.folder / "cpu_seconds.json").get("cpu_seconds")
