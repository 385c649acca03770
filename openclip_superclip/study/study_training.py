"""All runs of a study, several at a time: trained, measured, and resumed where an earlier call stopped."""

import itertools
import statistics
import threading
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from ..atomic_files import write_json
from ..errors import InputError
from ..planning.recipe import Recipe
from ..planning.recipe_file import read_recipe
from ..running.run_folder import RunFolder
from ..running.run_state import read_object
from .study_call import DEMO, place_of_runs
from .study_file import CHOOSING, LIKE, Study, folder_name
from .study_results import check_measures
from .study_run import StudyRun, check_folder, is_finished, measured, note_data, samples_seen, train, unfinished

UNNAMED = ("method", "seed", "chosen", "paper")  # what no run's name says, or says in its own place


class StudyTraining:
    """A study in a folder, where its runs are unless `runs_in` says another, and what was chosen in OUT/chosen.json.

    A run's folder is named by what its recipe differs in from the study's, so that studies of one recipe share theirs.

    Args:
        jobs: runs at a time.
        data: shards in place of the recipe's.
        extra: more fields with their values, of every run.
        trains: whether runs that are not finished are trained here; InputError names them where they are not.
        more: options of `superclip run`, of every run.
        scenes: the folder of the demo's model and scenes.
    """

    def __init__(
        self, study: Study, out: Path, jobs: int, device: str, data: str | None = None, extra: Sequence = (),
        runs_in: Path | None = None, trains: bool = True, more: Sequence[str] = (), scenes: Path = DEMO,
    ):  # fmt: skip
        self.study, self.out, self.jobs, self.device, self.data = study, out, jobs, device, data
        self.extra, self.trains, self.more, self.scenes = tuple(extra), trains, more, scenes
        self.runs_in, self.runs_flag = place_of_runs(out, runs_in)
        of_data = {name: value for name, value in self.extra if name == "data_samples"}  # passes are as many samples
        self.common = read_recipe(study.recipe, of_data)

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

    def check_folder(self, run: StudyRun) -> None:
        """Raises InputError where the run's folder holds a run of other settings, data or device."""
        check_folder(run, self.device, self.data, f"give {self.runs_flag} another folder")

    def write_recipes(self, runs: Sequence[StudyRun]) -> list[StudyRun]:
        """Writes the recipes of runs into their folders, for jobs to train, and returns the runs, equal ones once.

        Raises InputError where another run is in a folder.
        """
        different = list({run.folder: run for run in runs}.values())
        for run in different:
            self.check_folder(run)
            note_data(run, self.data)
            RunFolder(run.folder).write_recipe(read_recipe(run.recipe, dict(run.set)))
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
        chosen = read_object(self.out / "chosen.json") if self.study.choose else {}
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
        folder = self.runs_in / run_name(
            self.common, read_recipe(self.study.recipe, settings), {*self.study.set, *dict(self.extra)}
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
                train(run, self.device, self.data, stop, self.more)
            measures = self.study.measures if run.split == "test" else self.study.choosing_measures
            return measured(run, measures, self.scenes, stop)

        with (
            tqdm(total=sum(totals.values()), desc=self.study.name, unit=" samples", unit_scale=True) as progress,
            ThreadPoolExecutor(self.jobs) as pool,
        ):
            futures = {folder: pool.submit(one, run) for folder, run in different.items()}
            try:
                while not all(future.done() for future in futures.values()):
                    failed = next((f for f in futures.values() if f.done() and f.exception()), None)
                    if failed:
                        raise failed.exception()
                    _show(progress, totals)
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


def _show(progress: tqdm, totals: dict[Path, int]) -> None:
    seen = sum(min(samples_seen(folder), total) for folder, total in totals.items())
    progress.update(max(0, seen - progress.n))
