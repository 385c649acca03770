"""All runs of a study, several at a time: trained, measured, and resumed after an interruption."""

import itertools
import math
import os
import statistics
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import torch
from tqdm import tqdm

from ..checkpoints.began_with import versions_of_run
from ..checkpoints.starting_weights import is_unchecked
from ..demo.data import write_training_data
from ..demo.scenes import write_dense_scenes
from ..environment import keep_freed_memory, processor
from ..errors import InputError, listed
from ..files import json_or_empty, make_folder, write_bytes, write_json, write_text
from ..method.model import trains_only_head
from ..openclip.factory import model_without_values
from ..openclip.train import check_command
from ..plans.recipe_files import read_recipe
from ..plans.run import Run
from ..runs.lock import lock
from ..runs.slurm import find_placement
from ..runs.unreadable import accepted_data
from .measure_run import DENSE_SCENES, measured
from .study_call import StudyCall
from .study_file import LIKE
from .study_results import StudyResults, check_measures
from .study_run import StudyRun, named_fields, run_name

SECONDS_BETWEEN_LINES = 10  # of the progress bar, without a terminal
Rates = dict[str, dict[str, str]]  # the tuned learning rate, by arm and cell


class StudyTraining:
    """A study in a folder, with its runs, its tuned learning rates in OUT/chosen.json and their
    trials.

    A run's folder is named after the fields in which its recipe differs from the study's, so that
    studies of one recipe share runs. `jobs` runs are trained at a time; if it is 0, InputError
    names those that are not finished.
    """

    def __init__(self, call: StudyCall, jobs: int = 0):
        self.call = call
        self.study = call.study
        self.jobs = jobs
        self._fields: dict[str, dict] = {}  # of the recipes, by the name of the run

    def runs(self, chosen: Rates) -> list[StudyRun]:
        """Returns the study's runs: seeds outermost, so that the finished ones are always a
        study of fewer seeds."""
        study = self.study
        runs = []
        for seed, cell, arm in itertools.product(study.result_seeds, study.cell_values, study.arms):
            fields = study.arms[arm]
            rates = {} if "lr" in fields else chosen.get(fields.get(LIKE, arm), {})
            runs.append(self._run(arm, cell, seed, rates.get(str(cell))))
        return runs

    def trials(self) -> list[StudyRun]:
        """Returns the runs that tune the learning rates."""
        study = self.study
        tuned = [arm for arm, fields in study.arms.items() if not fields.keys() & {LIKE, "lr"}]
        return [
            self._run(arm, cell, seed, str(rate), "tune")
            for seed, cell, arm, rate in itertools.product(
                study.tuning_seeds, study.cell_values, tuned, study.choose.get("lr", [])
            )
        ]

    def _run(self, arm: str, cell, seed: int, rate: str | None, split: str = "test") -> StudyRun:
        """Returns a run; InputError if its folder has, or will have, another one."""
        study = self.study
        own_seed = {"seed": str(seed)}
        settings = study.settings(arm, cell) | own_seed
        if rate:
            settings["lr"] = rate
        recipe = read_recipe(study.recipe, settings)
        common = read_recipe(study.recipe, study.overrides | own_seed)
        is_common = {name: settings[name] == value for name, value in study.fields_of_all.items()}
        name = run_name(recipe, common, is_common)
        folder = self.call.runs_in / name
        run = StudyRun(self.call, arm, cell, seed, settings, recipe, folder, split)
        fields = named_fields(recipe)
        if name not in self._fields:
            self._fields[name] = fields
            self._check_folder(run)
        elif self._fields[name] != fields:
            raise InputError(
                f"arms: {arm} and another arm would share the folder {name}, but their recipes "
                "differ: rename the file, or change the value"
            )
        return run

    def _check_folder(self, run: StudyRun) -> None:
        """Raises InputError if the run's folder contains a run with other settings, data or
        device."""
        folder = run.run_folder
        advice = "give --runs another folder"
        if folder.checkpoints.exists() and not (folder.path / "recipe.yaml").exists():
            raise InputError(
                f"{folder.path} contains checkpoints of something else than a run of a study: "
                f"{advice}"
            )
        folder.check_recipe(run.recipe, advice)
        folder.check_data(advice, self.call.data or run.recipe.shards, self.call.options.device)

    def summary(self) -> str:
        """Returns which runs the study trains and how many samples, without training or writing
        anything."""
        self.check_data()
        lines = [f"{self.study.name}: {self.study.question}"]
        for kind, group in (("trials", self.trials()), ("runs", self.runs(self.chosen()))):
            if group:
                left = unfinished(group)
                samples = sum(run.recipe.samples for run in left)
                lines.append(
                    f"{kind}: {len(by_folder(group))}, of which {len(left)} are left to train: "
                    f"{samples:,} samples"
                )
        return "\n".join(lines)

    def check_data(self) -> None:
        """Prints the warnings of what is left to train and of its data; InputError if that could
        not be read. The demo's scenes are written later."""
        runs = unfinished([*self.trials(), *self.runs(self.chosen())])
        plans = [run.described() for run in runs]
        check_plans(plans, reads_data=not self.study.is_of_scenes)

    def check_arms(self) -> None:
        """Raises InputError for an arm whose class loss would train only its head."""
        study = self.study
        for run in self.runs(self.chosen()):
            is_first = run.seed == study.first_seed
            if study.is_of_scenes or not (is_first and run.recipe.method.startswith("super")):
                continue
            options = check_command(run.described().openclip_arguments())
            if not is_unchecked(options) and trains_only_head(model_without_values(options)):
                raise InputError(
                    f"arm '{run.arm}': its image tower is frozen, so the class loss trains only "
                    "its head: its towers would be those of a training without the class loss; "
                    "train the image tower, too, or leave the arm out"
                )

    def check_finished(self, runs: Sequence[StudyRun]) -> None:
        """Raises InputError if runs are not finished."""
        left = unfinished(runs)
        if left:
            names = [f"{run.folder.name} ({run.state.get('state', 'not started')})" for run in left]
            raise InputError(
                f"{len(left)} of {len(by_folder(runs))} runs in {self.call.runs_in} are not "
                f"finished: {listed(names, 3)}; the command that trains the study, or submits it "
                "to SLURM, continues them"
            )

    def tune(self) -> Rates:
        """Returns each arm's learning rate in each cell: the best mean of the primary measure
        over its trials."""
        trials = self.trials()
        if not trials:
            return {}
        scores = {}  # by arm, cell and rate
        for record in self.records(trials):
            by_rate = scores.setdefault(record["arm"], {}).setdefault(str(record["cell"]), {})
            score = record["measures"][self.study.primary]
            by_rate.setdefault(record["set"]["lr"], []).append(score)
        chosen = {arm: {} for arm in scores}
        for arm, by_cell in scores.items():
            for cell, by_rate in by_cell.items():
                means = {rate: statistics.mean(values) for rate, values in by_rate.items()}
                chosen[arm][cell] = max(means, key=means.get)
        write_json(self.call.out / "trials.json", scores)
        write_json(self.call.out / "chosen.json", chosen)
        return chosen

    def chosen(self) -> Rates:
        """Returns the learning rates that an earlier call has tuned."""
        return json_or_empty(self.call.out / "chosen.json") if self.study.choose else {}

    def records(self, runs: Sequence[StudyRun]) -> list[dict]:
        """Trains and measures runs; equal ones once."""
        if not self.jobs:
            self.check_finished(runs)
        results = self._train_and_measure(by_folder(runs))
        records = [
            {
                "arm": run.arm,
                "cell": run.cell,
                "seed": run.seed,
                "set": run.set,
                **results[run.folder.name],
            }
            for run in runs
        ]
        check_measures(self.study, records)
        return records

    def _train_and_measure(self, runs: Sequence[StudyRun]) -> dict[str, dict]:
        """Returns what was measured of each run by its name, after training `jobs` at a time
        under one bar of all their samples."""
        primary = self.study.primary
        title = primary.replace("_", " ")
        stop = threading.Event()
        results = {}
        with self._bar(runs) as bar, ThreadPoolExecutor(self.jobs or 1) as pool:
            pending = {pool.submit(self._finish, run, stop) for run in runs}
            try:
                while pending:
                    done, pending = wait(pending, timeout=1, return_when=FIRST_EXCEPTION)
                    for future in done:
                        record = future.result()
                        name = record["run"]
                        results[name] = record
                        score = record["measures"].get(primary, math.nan)
                        bar.write(f"{name}: {title} {score:.1f}", sys.stderr)
                    show_progress(bar, sum(run.samples_trained for run in runs))
            except BaseException:
                stop.set()  # the runs end in order, and the same command resumes them
                pool.shutdown(cancel_futures=True)
                raise
        return results

    def _bar(self, runs: Sequence[StudyRun]) -> tqdm:
        """Returns a bar over the samples of runs, with the remaining time at their mean speed."""
        return tqdm(
            desc=self.study.name,
            total=sum(run.recipe.samples for run in runs),
            initial=sum(run.samples_trained for run in runs),
            unit_scale=True,
            smoothing=0,
            miniters=0,
            mininterval=0.5 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} samples, "
            "{elapsed}<{remaining}",
        )

    def _finish(self, run: StudyRun, stop: threading.Event) -> dict:
        """Trains and measures a run."""
        if self.jobs:
            run.train(stop)
        return measured(run, stop)


def show_progress(bar: tqdm, trained: int) -> None:
    """Shows how many samples are trained; a resumed run repeats those after its checkpoint, which
    must not make the speed negative."""
    bar.initial = min(bar.initial, trained)
    bar.update(trained - bar.n)


def by_folder(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """Returns the runs, those that share a folder once."""
    return list({run.folder: run for run in runs}.values())


def unfinished(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """Returns the runs that are not finished, equal ones once."""
    return [run for run in by_folder(runs) if not run.is_finished]


def check_plans(plans: Iterable[Run], *, reads_data: bool) -> None:
    """Prints the warnings of different plans and of their data; InputError for a problem with the
    data, or only with its pattern."""
    different = {}
    for plan in plans:
        long_caption = plan.recipe.config.long_caption_key
        shards = (plan.data, plan.recipe.slices, plan.slice_samples)
        different[shards, long_caption, tuple(plan.warnings)] = plan
    for plan in different.values():
        accepted_data(plan, "study", reads_data=reads_data)


def run_study(call: StudyCall, jobs: int) -> StudyResults:
    """Trains and measures what is missing, writes the results into the study's folder, and returns
    them.

    `jobs` is the number of runs at a time; 0 trains nothing: InputError if a run is not finished.
    """
    training = StudyTraining(call, jobs)
    if jobs:
        training.check_data()
    else:
        training.check_finished(training.trials() or training.runs({}))
    make_folder(call.out)
    make_folder(call.runs_in, "--runs")
    placement = find_placement()
    folder = call.runs_in.resolve()
    with (  # other studies may share the folder of the runs
        lock(call.out / "lock", placement),
        lock(folder.with_name(f"{folder.name}.lock"), placement, call.runs_in, "--runs"),
    ):
        # a new one checks the runs' folders again: another study may have written there since
        training = StudyTraining(call, jobs)
        write_data(call)
        chosen = training.tune()
        results = StudyResults(call.study, training.records(training.runs(chosen)))
        write_results(results, chosen, call)
    return results


def write_results(results: StudyResults, chosen: Rates, call: StudyCall) -> None:
    """Writes study.json, study.csv (a row for each run), study.md and study.png."""
    from .figures import draw_study

    study = results.study
    out = call.out
    # a call that only reports has neither the device nor the settings of the runs
    trained = Run.find(call.runs_in / results.records[0]["run"]) or call.options
    content = {
        "question": study.question,
        "primary": study.primary,
        "command": call.options.command,
        "study": study.as_dict(),
        "device": trained.device,
        "settings": vars(trained.settings),
        "set": study.overrides,
        "versions": versions_of_run(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "chosen": chosen,
        **results.comparisons(),
        "runs": results.records,
    }
    write_json(out / "study.json", content)
    write_text(out / "study.csv", results.csv())
    write_text(out / "study.md", results.tables() + "\n")
    write_bytes(out / "study.png", draw_study(results))


def write_data(call: StudyCall) -> None:
    """Writes the demo's scenes that a study trains and measures on, if it does."""
    study = call.study
    scenes = call.options.scenes
    if study.is_of_scenes:
        torch.set_num_threads(1)  # measuring happens in the threads that also wait for the runs
        keep_freed_memory()
        write_training_data(scenes, call.training_data, [*study.result_seeds, *study.tuning_seeds])
    if study.measures == "dense-scenes":
        write_dense_scenes(scenes / DENSE_SCENES)
