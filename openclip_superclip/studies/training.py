"""All runs of a study, several at a time: trained, measured, and resumed where an earlier call stopped."""

import dataclasses
import functools
import hashlib
import itertools
import logging
import os
import platform
import shlex
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

from tqdm import tqdm

from ..checkpoints.run_outputs import checkpoints, is_whole, read_log
from ..data.shards import expand
from ..data.tables import is_table
from ..environment import progress_file, versions
from ..errors import InputError, reason
from ..files import content_digest, make_folder, read_json, write_json, write_text
from ..runs.folder import FINISHED, RunFolder, lock
from ..runs.plan import make_run
from ..runs.process import run_superclip
from ..runs.recipe import Recipe, read_recipe
from ..runs.run import DEFAULTS, Run, Settings
from ..runs.slurm import find_placement
from .measures import DENSE_SCENES, measure_dense
from .results import StudyResults, check_measures
from .study import (
    CHOOSING,
    DEMO,
    LIKE,
    MEASURES,
    OF_SCENES,
    Study,
    StudyCall,
    data_of_scenes,
    folder_name,
    place_of_runs,
)

ESTIMATE_AFTER = 60  # seconds, for the time that is left
UNNAMED = ("method", "seed", "chosen", "paper")  # what no run's name says, or says in its own place


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

    def described(self, device: str, data: str | None, settings: Settings = DEFAULTS, **machines) -> Run:
        """Returns the run as `make_run` makes it."""
        recipe, set_ = read_recipe(self.recipe, dict(self.set)), dict(self.set)
        return make_run(recipe, data=data, device=device, settings=settings, set_=set_, **machines)


class StudyTraining:
    """A study in a folder, where its runs are unless `runs_in` says another, and what was chosen in OUT/chosen.json.

    A run's folder is named by what its recipe differs in from the study's, so that studies of one recipe share theirs.

    Args:
        jobs: runs at a time.
        data: shards in place of the recipe's.
        extra: more fields with their values, of every run.
        trains: whether runs that are not finished are trained here; InputError names them where they are not.
        settings: of every run.
        scenes: the folder of the demo's model and scenes.
    """

    def __init__(
        self, study: Study, out: Path, jobs: int, device: str, data: str | None = None, extra: Sequence = (),
        runs_in: Path | None = None, trains: bool = True, settings: Settings = DEFAULTS, scenes: Path = DEMO,
    ):  # fmt: skip
        self.study, self.out, self.jobs, self.device, self.data = study, out, jobs, device, data
        self.extra, self.trains, self.settings, self.scenes = tuple(extra), trains, settings, scenes
        self.runs_in, self.runs_flag = place_of_runs(out, runs_in)
        of_data = {name: value for name, value in self.extra if name == "data_samples"}  # passes are as many samples
        self.of_data = of_data

    def run(self) -> tuple[list[dict], dict]:
        """Returns the records of all runs, and the learning rates chosen; InputError where a run fails."""
        chosen = self.choose()
        return self._records(self.runs(chosen)), chosen

    def runs(self, chosen: dict[str, dict[str, str]]) -> list[StudyRun]:
        """Returns the study's runs: seeds outermost, so that what is finished is always a study of fewer seeds."""
        study = self.study
        seeds = range(study.first_seed, study.first_seed + study.seeds)
        return [
            self._run(arm, cell, seed, self._rates(chosen, arm, cell))
            for seed, cell, arm in itertools.product(seeds, study.cell_values, study.arms)
        ]

    def summary(self) -> str:
        """Returns which runs the study trains and how many samples, without training or writing anything."""
        chosen = self.chosen_before() or {arm: {} for arm in self.study.arms}
        lines, num_samples = [], 0
        for what, runs in (("trials", self.trials()), ("runs", self.runs(chosen))):
            different = {run.folder: run for run in runs}
            left = [run for run in different.values() if not is_finished(run)]
            samples = sum(read_recipe(run.recipe, dict(run.set)).samples for run in left)
            num_samples += samples
            if different:
                lines.append(f"{what}: {len(different)}, of which {len(left)} are left to train: {samples:,} samples")
        return "\n".join([
            f"{self.study.name}: {self.study.question}", *lines,
            f"{num_samples:,} samples in all. A minute after training has begun, superclip study prints how long the "
            "rest takes.",
        ])  # fmt: skip

    def check_folder(self, run: StudyRun) -> None:
        """Raises InputError where the run's folder holds a run of other settings, data or device."""
        check_folder(run, self.device, self.data, f"give {self.runs_flag} another folder")

    def write_runs(self, runs: Sequence[StudyRun], machines: dict) -> list[StudyRun]:
        """Writes the descriptions of runs into their folders, for jobs to train, and returns the runs, equal ones once.

        Raises InputError if another run is in a folder.

        Args:
            machines: arguments of `make_run`.
        """
        different = list({run.folder: run for run in runs}.values())
        for run in different:
            self.check_folder(run)
            note_data(run, self.data)
            RunFolder(run.folder).write(run.described(self.device, self.data, self.settings, **machines))
        return different

    def trials(self) -> list[StudyRun]:
        """Returns the runs by which the learning rates are chosen."""
        study = self.study
        if not study.choose:
            return []
        return [
            self._run(arm, cell, CHOOSING + seed, {"lr": f"{lr}"}, "tune")
            for seed, cell, arm, lr in itertools.product(
                range(study.choose["seeds"]), study.cell_values, self._arms_with_a_choice(), study.choose["lr"]
            )
        ]

    def choose(self) -> dict[str, dict[str, str]]:
        """Returns each arm's learning rate in each cell: the best mean of the primary measure on the split for that."""
        trials = self.trials()
        if not trials:
            return {}
        scores: dict = {}
        records = self._records(trials)
        check_measures(self.study, records)
        for one in records:
            place = scores.setdefault(one["arm"], {}).setdefault(str(one["cell"]), {})
            place.setdefault(one["set"]["lr"], []).append(one["measures"][self.study.primary])
        chosen = {
            arm: {cell: max(rates, key=lambda lr: statistics.mean(rates[lr])) for cell, rates in cells.items()}
            for arm, cells in scores.items()
        }
        write_json(self.out / "trials.json", scores)
        write_json(self.out / "chosen.json", chosen)
        return chosen

    def chosen_before(self) -> dict[str, dict[str, str]] | None:
        """Returns the learning rates that an earlier call has chosen, None where one of this study's is missing."""
        chosen = read_json(self.out / "chosen.json", default={}) if self.study.choose else {}
        expected = self._arms_with_a_choice() if self.study.choose else []
        rates = {f"{lr}" for lr in self.study.choose.get("lr", [])}
        found = all(chosen.get(arm, {}).get(str(c)) in rates for arm in expected for c in self.study.cell_values)
        return chosen if found and all(map(is_finished, self.trials())) else None

    def _arms_with_a_choice(self) -> list[str]:
        return [arm for arm, values in self.study.arms.items() if LIKE not in values and "lr" not in values]

    def _rates(self, chosen: dict, arm: str, cell) -> dict[str, str]:
        of_arm = chosen.get(self.study.arms[arm].get(LIKE, arm), {})
        return {"lr": of_arm[str(cell)]} if str(cell) in of_arm else {}

    def _run(self, arm: str, cell, seed: int, more: dict[str, str], split: str = "test") -> StudyRun:
        settings = {**self.study.settings(arm, cell, dict(self.extra)), **more, "seed": str(seed)}
        common = read_recipe(self.study.recipe, {**self.of_data, "seed": str(seed)})
        folder = self.runs_in / run_name(
            common, read_recipe(self.study.recipe, settings), {*self.study.set, *dict(self.extra)}
        )
        return StudyRun(arm, cell, seed, self.study.recipe, tuple(settings.items()), folder, split)

    def _records(self, runs: list[StudyRun]) -> list[dict]:
        """Trains and measures runs, `jobs` at a time, under one bar of all their samples; equal runs are one."""
        for run in runs:  # all, before the first trains
            self.check_folder(run)
        different = {run.folder: run for run in runs}
        if not self.trains:
            self._check_finished(list(different.values()))
        totals = {folder: read_recipe(run.recipe, dict(run.set)).samples for folder, run in different.items()}
        stop = threading.Event()

        def one(run: StudyRun) -> dict:
            if stop.is_set():
                raise InputError("stopped")
            if self.trains:
                train(run, self.device, self.data, stop, self.settings)
            measures = self.study.measures if run.split == "test" else self.study.choosing_measures
            return measured(run, measures, self.scenes, stop)

        with (
            tqdm(
                total=sum(totals.values()), desc=self.study.name, unit=" samples", unit_scale=True, file=progress_file()
            ) as progress,
            ThreadPoolExecutor(self.jobs) as pool,
        ):
            estimated = False
            futures = {folder: pool.submit(one, run) for folder, run in different.items()}
            try:
                while not all(future.done() for future in futures.values()):
                    failed = next((f for f in futures.values() if f.done() and f.exception()), None)
                    if failed:
                        raise failed.exception()
                    _show(progress, totals)
                    estimated = estimated or _estimate(progress)
                    stop.wait(1)
                _show(progress, totals)
                return [
                    {"arm": run.arm, "cell": run.cell, "seed": run.seed, "set": dict(run.set), **shown[run.folder]}
                    for shown in [{folder: future.result() for folder, future in futures.items()}]
                    for run in runs
                ]
            except BaseException:
                stop.set()  # the runs that train end in order, and resume with the same command
                pool.shutdown(cancel_futures=True)
                raise

    def _check_finished(self, runs: list[StudyRun]) -> None:
        missing = [told for run in runs if (told := unfinished(run))]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise InputError(
                f"{len(missing)} of {len(runs)} runs are not finished: {', '.join(missing[:3])}{more}; the same "
                "command without --only trains the rest, and the one that submitted the study to SLURM submits it"
            )


def run_name(common: Recipe, recipe: Recipe, unnamed: Set[str] = frozenset()) -> str:
    """Returns the name of a run's folder: its method, the fields that differ from `common`, and its seed.

    Fields of `unnamed`, which all runs of a study have alike, are left out.
    """
    ours, theirs = _flat(recipe.as_dict()), _flat(common.as_dict())
    differ = [key for key in ours if key not in unnamed and (key not in theirs or ours[key] != theirs[key])]
    told = [f"{key.rpartition('.')[2]}-{folder_name(str(ours[key]))}" for key in differ]
    return "_".join([recipe.method, *told, f"seed{recipe.seed}"])


def _flat(values: dict, prefix: str = "") -> dict:
    """Returns the values with the fields of mappings as KEY.FIELD, as --set takes them."""
    flat: dict = {}
    for key, value in values.items():
        if key in UNNAMED:
            continue
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _estimate(progress: tqdm) -> bool:
    """Prints once how long the rest takes, a minute after the first samples; returns whether it did."""
    started, first = getattr(progress, "first", None) or (time.monotonic(), progress.n)
    if progress.n > first and time.monotonic() - started >= ESTIMATE_AFTER:
        speed = (progress.n - first) / (time.monotonic() - started)
        left = (progress.total - progress.n) / speed
        shown = f"{left / 3600:.1f} hours" if left > 5400 else f"{left / 60:.0f} minutes"
        progress.write(f"{progress.desc}: about {shown} left, at {speed:,.0f} samples/s", file=sys.stderr)
        return True
    if progress.n > 0:
        progress.first = started, first
    return False


def _show(progress: tqdm, totals: dict[Path, int]) -> None:
    seen = sum(min(samples_seen(folder), total) for folder, total in totals.items())
    progress.update(max(0, seen - progress.n))


DATA = "data.json"  # in a run's folder: what its data held when it was trained


PACKAGES = ("openclip-superclip", "open_clip_torch", "torch", "webdataset", "numpy", "pillow")


def check_folder(run: StudyRun, device: str, data: str | None, advice: str) -> None:
    """Raises InputError, ended by the advice, where the run's folder holds a run of other settings, data or device."""
    folder = RunFolder(run.folder)
    recipe = read_recipe(run.recipe, dict(run.set))
    folder.check_recipe(recipe, advice)
    there = folder.record().get("plan", {})
    if there and not (run.folder / "recipe.yaml").exists():
        raise InputError(f"{run.folder} holds a run without its recipe.yaml, which tells what it is: put it back")
    kept = read_json(run.folder / DATA, default={})
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
    if is_table(path) and Path(path).is_file():
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


def train(run: StudyRun, device: str, data: str | None, stop: threading.Event, settings: Settings = DEFAULTS) -> None:
    """Trains a run from where it stopped; a finished one is left alone. Its CPU seconds are added to what they were.

    Args:
        settings: of the run.

    Raises InputError, with what the run last said, where it fails, and where `stop` ends it.
    """
    if is_finished(run):
        return
    if is_table(data or read_recipe(run.recipe, dict(run.set)).shards):  # OpenCLIP would go on in another order
        shutil.rmtree(run.folder, ignore_errors=True)
    note_data(run, data)
    output = run.folder.with_name(f"{run.folder.name}.output")
    RunFolder(run.folder).write(run.described(device, data, settings))
    code, seconds = run_superclip(["run", str(run.folder)], output, device == "cpu", stop.is_set)
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
    found = read_json(kept, default={})
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
            raise InputError(
                f"{weights} cannot be read ({reason(error)}): remove {run.folder}, and the same command trains it"
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
    if MEASURES[measures] == OF_SCENES or measures == "natural":
        from ..demo.data import SECOND_DRAW
        from ..demo.measures import measure, measure_natural
        from ..demo.scenes import UNSEEN_DESIGNERS
        from .measures import open_trained

        model = read_recipe(str(run.folder / "recipe.yaml")).model
        if measures == "natural":
            return measure_natural(*open_trained(weights, model), split=run.split, seed=run.seed)
        second = SECOND_DRAW.designers
        shown = {
            "unseen-drawings": {"designers": UNSEEN_DESIGNERS},
            "second-draw": {"designers": second, "trained_on": second, "seed": SECOND_DRAW.seed},
        }
        return measure(*open_trained(weights, model), split=run.split, **shown.get(measures, {}))
    from .scores import of_training

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
    return read_json(run.folder / "cpu_seconds.json", default={}).get("cpu_seconds")


MACHINES = "machines.json"  # in a study's folder: what its jobs train on
RUNS_LIST = "runs.list"  # the folders of the runs, a line each


JOBS = "jobs.json"  # the numbers of the jobs that were submitted last, by the names of the stages


def run_study(call: StudyCall, jobs: int, trains: bool = True) -> StudyResults:
    """Trains and measures what is not there yet, writes the results into the folder, and returns them.

    Args:
        jobs: runs at a time.
        trains: whether runs that are not finished are trained here; InputError names them where they are not.
    """
    if not trains and call.runs_in and not call.runs_in.is_dir():
        raise InputError(f"--runs: there is no folder {call.runs_in}")
    with _locked(call):
        training = prepared_training(call, jobs, trains)
        records, chosen = training.run()
        results = StudyResults(call.study, records, chosen)
        results.write(call.out, _provenance(call))
    return results


def choose_rates(call: StudyCall) -> str:
    """Chooses the learning rates by trials that are finished, and tells of them.

    The recipes of the runs are written into their folders, and these into OUT/runs.list, for jobs to train.
    """
    with _locked(call):
        training = prepared_training(call, 1, trains=False)
        chosen = training.choose()
        machines = read_json(call.out / MACHINES, default={})
        training.settings = Settings(**machines.pop("settings", {}))
        runs = training.write_runs(training.runs(chosen), machines)
        write_text(call.out / RUNS_LIST, "".join(f"{run.folder}\n" for run in runs))
        array = submitted_jobs(call.out).get("runs")
        for task, run in enumerate(runs if array else []):
            RunFolder(run.folder).note_submission(f"{array}_{task}")
    rates = [f"{arm}, {cell}: {lr}" for arm, cells in chosen.items() for cell, lr in cells.items()]
    return f"learning rates: {'; '.join(rates) or 'the recipe holds them'}; {len(runs)} recipes in {training.runs_in}"


@contextmanager
def _locked(call: StudyCall) -> Iterator[None]:
    """Holds the study's folder, and that of its runs, which other studies may share."""
    runs_in, flag = place_of_runs(call.out, call.runs_in)
    make_folder(runs_in, flag)
    make_folder(call.out, "--out")
    with ExitStack() as held:
        held.enter_context(lock(call.out / "lock", find_placement()))
        place = runs_in.resolve()
        held.enter_context(lock(place.with_name(f"{place.name}.lock"), find_placement(), runs_in, flag))
        yield


def submitted_jobs(out: Path) -> dict[str, str]:
    """Returns the numbers of the jobs that were submitted last, by the names of their stages."""
    kept = out / JOBS
    found = read_json(kept, default={})
    if not found and kept.exists():
        raise InputError(f"{kept} is damaged: scancel the study's jobs, which squeue --me shows, and remove the file")
    return found


def prepared_training(call: StudyCall, jobs: int, trains: bool = True) -> StudyTraining:
    """Returns the study's training, the data that it measures on written."""
    if call.study.is_of_scenes:
        _write_demo_data(call)
    if call.study.measures == "dense-scenes":
        from ..demo.scenes import write_dense_scenes

        write_dense_scenes(call.scenes / DENSE_SCENES)
    logging.getLogger().setLevel(logging.ERROR)  # OpenCLIP warns that a model to be trained has no weights
    return new_training(call, jobs, trains)


def new_training(call: StudyCall, jobs: int, trains: bool) -> StudyTraining:
    return StudyTraining(
        call.study, call.out, jobs, call.device, call.data, tuple(call.set.items()), call.runs_in, trains,
        call.settings, call.scenes,
    )  # fmt: skip


def _write_demo_data(call: StudyCall) -> None:
    import torch

    from ..demo.data import write_training_data

    torch.set_num_threads(1)  # measuring happens in the threads that also wait for the runs
    study = call.study
    seeds = [*range(study.first_seed, study.first_seed + study.seeds)]
    seeds += range(CHOOSING, CHOOSING + study.choose.get("seeds", 0))
    write_training_data(call.scenes, data_of_scenes(study), seeds)


def _provenance(call: StudyCall) -> dict:
    processor = next(
        (line.partition(":")[2].strip() for line in _cpu_info() if line.startswith("model name")), platform.machine()
    )
    return {
        "command": shlex.join(["superclip", *call.arguments]),
        "study": dataclasses.asdict(call.study), "device": call.device, "set": dict(call.set),
        "versions": versions(*PACKAGES), "processor": processor, "cpus": os.cpu_count(),
    }  # fmt: skip


def _cpu_info() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
