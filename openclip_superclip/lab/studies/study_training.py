"""All runs of a study, several at a time: trained, measured, and resumed after an interruption."""

import dataclasses
import itertools
import math
import os
import shlex
import statistics
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import torch

from ...environment import processor, versions
from ...errors import InputError, listed
from ...files import make_folder, read_json, write_json
from ...runs.folder import RunFolder
from ...runs.lock import lock
from ...runs.progress import refuse_bad_files
from ...runs.recipe import Recipe, read_recipe
from ...runs.slurm import find_placement
from ..demo.data import write_training_data
from ..demo.scenes import write_dense_scenes
from .progress_bar import StudyBar
from .study_file import LIKE, TUNING_SEEDS, StudyCall, data_of_scenes, texts
from .study_results import StudyResults, check_measures
from .study_run import DENSE_SCENES, PACKAGES, StudyRun, flat, measured, run_name


class StudyTraining:
    """A study in a folder, with its runs, its tuned learning rates in OUT/chosen.json and their
    trials.

    A run's folder is named after the fields in which its recipe differs from the study's, so that
    studies of one recipe share runs. `jobs` runs are trained at a time; if it is 0, InputError
    names those that are not finished.
    """

    def __init__(self, call: StudyCall, jobs: int = 0):
        self.call, self.study, self.jobs = call, call.study, jobs
        self._recipes: dict[str, Recipe] = {}

    def runs(self, chosen: dict[str, dict[str, str]]) -> list[StudyRun]:
        """Returns the study's runs: seeds outermost, so that the finished ones are always a
        study of fewer seeds."""
        study, runs = self.study, []
        seeds = range(study.first_seed, study.first_seed + study.seeds)
        for seed, cell, arm in itertools.product(seeds, study.cell_values, study.arms):
            values = study.arms[arm]
            rate = values.get("lr") or chosen.get(values.get(LIKE, arm), {}).get(str(cell))
            runs.append(self._run(arm, cell, seed, {"lr": f"{rate}"} if rate else {}))
        return runs

    def trials(self) -> list[StudyRun]:
        """Returns the runs that tune the learning rates."""
        study = self.study
        seeds, rates = range(study.choose.get("seeds", 0)), study.choose.get("lr", [])
        tuned = [
            arm for arm, values in study.arms.items() if LIKE not in values and "lr" not in values
        ]
        return [
            self._run(arm, cell, TUNING_SEEDS + seed, {"lr": f"{lr}"}, "tune")
            for seed, cell, arm, lr in itertools.product(seeds, study.cell_values, tuned, rates)
        ]

    def _run(
        self, arm: str, cell, seed: int, more: dict[str, str], split: str = "test"
    ) -> StudyRun:
        study, of_all = self.study, self.call.set
        settings = {**study.settings(arm, cell, of_all), **more, "seed": str(seed)}
        # passes are as many samples
        of_data = {name: of_all[name] for name in ("data_samples",) if name in of_all}
        common = read_recipe(study.recipe, {**of_data, "seed": str(seed)})
        is_common = {
            name: settings[name] == value
            for name, value in (texts(study.set) | dict(of_all)).items()
        }
        name = run_name(common, recipe := read_recipe(study.recipe, settings), is_common)
        one, other = flat(self._recipes.setdefault(name, recipe).as_dict()), flat(recipe.as_dict())
        if differ := [key for key in one | other if one.get(key) != other.get(key)]:
            problem = f"would share the folder {name} but differ in {listed(differ)}"
            raise InputError(
                f"arms: {arm} and another arm {problem}: rename the file, or change the value"
            )
        return StudyRun(
            arm, cell, seed, study.recipe, tuple(settings.items()), self.call.runs_in / name, split
        )

    def summary(self) -> str:
        """Returns which runs the study trains and how many samples, without training or writing
        anything."""
        lines, all_runs = [f"{self.study.name}: {self.study.question}"], self.runs(self.chosen())
        lines += [f"warning: {text}" for text in self.data_warnings(all_runs[0])]
        for what, runs in (("trials", self.trials()), ("runs", all_runs)):
            different, left = len({run.folder for run in runs}), unfinished(runs)
            samples = sum(run.recipe.samples for run in left)
            if different:
                lines.append(
                    f"{what}: {different}, of which {len(left)} are left to train: {samples:,} "
                    "samples"
                )
                lines += self.warnings(left)
        return "\n".join(lines)

    def warnings(self, runs: Sequence[StudyRun]) -> list[str]:
        """Returns the different warnings of the runs' plans, as `superclip plan` prints them for
        one run."""
        call = self.call
        plans = (run.described(call.device, call.data, call.settings) for run in runs)
        return list(dict.fromkeys(f"warning: {text}" for plan in plans for text in plan.warnings))

    def data_warnings(self, run: StudyRun) -> list[str]:
        """Returns warnings about the data that a run reads; InputError if it could not read it."""
        call = self.call
        if call.study.measures != "validation":
            return []
        plan = run.described(call.device, call.data, call.settings)
        if call.data or plan.is_table:
            checked = plan.check_data()
            refuse_bad_files(plan, checked)
            return checked["warnings"]
        return plan.check_validation()

    def check_finished(self, runs: Sequence[StudyRun]) -> None:
        """Raises InputError if runs are not finished."""
        if left := unfinished(runs):
            names = listed(
                (f"{run.folder.name} ({run.state.get('state', 'not started')})" for run in left), 3
            )
            raise InputError(
                f"{len(left)} of {len({run.folder for run in runs})} runs in "
                f"{self.call.runs_in} are not finished: "
                f"{names}; the command that trains the study, or submits it to SLURM, "
                "continues them"
            )

    def check_folder(self, run: StudyRun) -> None:
        """Raises InputError if the run's folder contains a run with other settings, data or
        device."""
        call, folder, advice = (
            self.call,
            RunFolder(run.folder),
            f"give {self.call.runs_flag} another folder",
        )
        if folder.checkpoints.exists() and not (folder.path / "recipe.yaml").exists():
            raise InputError(
                f"{folder.path} contains checkpoints of something else than a run of a study: "
                f"{advice}"
            )
        folder.check_recipe(run.recipe, advice)
        folder.check_plan(advice, data=call.data or run.recipe.shards, device=call.device)

    def tune(self) -> dict[str, dict[str, str]]:
        """Returns each arm's learning rate in each cell: the best mean of the primary measure
        over its trials."""
        trials = self.trials()
        if not trials:
            return {}
        scores: dict = {}
        for one in self.records(trials):
            rates = scores.setdefault(one["arm"], {}).setdefault(str(one["cell"]), {})
            rates.setdefault(one["set"]["lr"], []).append(one["measures"][self.study.primary])
        chosen = {
            arm: {
                cell: max(rates, key=lambda lr: statistics.mean(rates[lr]))
                for cell, rates in cells.items()
            }
            for arm, cells in scores.items()
        }
        write_json(self.call.out / "trials.json", scores)
        write_json(self.call.out / "chosen.json", chosen)
        return chosen

    def chosen(self) -> dict[str, dict[str, str]]:
        """Returns the learning rates that an earlier call has tuned."""
        return read_json(self.call.out / "chosen.json", default={}) if self.study.choose else {}

    def records(self, runs: list[StudyRun]) -> list[dict]:
        """Trains and measures runs, `jobs` at a time, under one bar of all their samples; equal
        runs are one."""
        for run in runs:  # all, before the first trains
            self.check_folder(run)
        different, stop = {run.folder: run for run in runs}, threading.Event()
        if not self.jobs:
            self.check_finished(runs)
        for warning in self.warnings(unfinished(runs)):
            print(warning, file=sys.stderr, flush=True)

        def one(run: StudyRun) -> dict:
            if stop.is_set():
                raise InputError("stopped")
            if self.jobs:
                run.train(self.call.device, self.call.data, stop, self.call.settings)
            measures = self.study.measures
            if run.split != "test" and measures == "unseen-drawings":  # trials must not see these
                measures = "demo"
            return measured(run, measures, self.call.scenes, stop)

        progress, primary = StudyBar(self.study.name, [*different.values()]), self.study.primary
        with progress.bar, ThreadPoolExecutor(self.jobs or 1) as pool:
            futures = {folder: pool.submit(one, run) for folder, run in different.items()}
            try:
                pending = futures.values()
                while pending:
                    done, pending = wait(pending, timeout=1, return_when=FIRST_EXCEPTION)
                    for future in done:
                        record = future.result()
                        progress.report(
                            record["run"], primary, record["measures"].get(primary, math.nan)
                        )
                    progress.show(num_measured=len(futures) - len(pending))
            except BaseException:
                stop.set()  # the runs end in order, and the same command resumes them
                pool.shutdown(cancel_futures=True)
                raise
        records = [
            {
                "arm": run.arm,
                "cell": run.cell,
                "seed": run.seed,
                "set": dict(run.set),
                **futures[run.folder].result(),
            }
            for run in runs
        ]
        check_measures(self.study, records)
        return records


def unfinished(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """Returns the runs that are not finished, equal ones once."""
    return list({run.folder: run for run in runs if not run.is_finished}.values())


def run_study(call: StudyCall, jobs: int) -> StudyResults:
    """Trains and measures what is missing, writes the results into the study's folder, and returns
    them.

    `jobs` is the number of runs at a time; 0 trains nothing: InputError if a run is not finished.
    """
    training = StudyTraining(call)
    runs = training.runs({})  # InputError if two different runs would be in one folder
    if not jobs:
        training.check_finished(training.trials() or runs)
    else:
        for warning in training.data_warnings(runs[0]):
            print(f"superclip study: {warning}", file=sys.stderr, flush=True)
    make_folder(call.runs_in, call.runs_flag)
    make_folder(call.out, "--out")
    place = call.runs_in.resolve()
    with (  # other studies may share the folder of the runs
        lock(call.out / "lock", find_placement()),
        lock(place.with_name(f"{place.name}.lock"), find_placement(), call.runs_in, call.runs_flag),
    ):
        training = prepared_training(call, jobs)
        chosen = training.tune()
        results = StudyResults(call.study, training.records(training.runs(chosen)), chosen)
        provenance = {
            "command": shlex.join(["superclip", *call.arguments]),
            "study": dataclasses.asdict(call.study),
            "device": call.device,
            "set": dict(call.set),
            "versions": versions(*PACKAGES),
            "processor": processor(),
            "cpus": os.cpu_count(),
        }
        results.write(call.out, provenance)
    return results


def prepared_training(call: StudyCall, jobs: int = 0) -> StudyTraining:
    """Returns the study's training, after writing the data that it trains and measures on."""
    study = call.study
    if study.is_of_scenes:
        torch.set_num_threads(1)  # measuring happens in the threads that also wait for the runs
        seeds = [*range(study.first_seed, study.first_seed + study.seeds)]
        seeds += range(TUNING_SEEDS, TUNING_SEEDS + study.choose.get("seeds", 0))
        write_training_data(call.scenes, data_of_scenes(study), seeds)
    if study.measures == "dense-scenes":
        write_dense_scenes(call.scenes / DENSE_SCENES)
    return StudyTraining(call, jobs)
