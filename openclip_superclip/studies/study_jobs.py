"""A study on SLURM: arrays that train its runs, and jobs that wait for them, choose, measure and report."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..files import make_folder, write_json, write_text
from ..runs.folder import RunFolder
from ..runs.lock import lock
from ..runs.machines import find_placement, my_jobs
from ..runs.plan import make_plan
from ..runs.recipe import read_recipe
from ..runs.slurm import SlurmJob, SlurmRequest, folders_of, paths_of, run_arguments
from .study import StudyCall
from .training import (
    JOBS,
    RUNS_LIST,
    StudyRun,
    StudyTraining,
    is_finished,
    new_training,
    prepared_training,
    submitted_jobs,
)

ABOUT = "# What `superclip study --slurm` has submitted; the same command submits what is left of the study."


TRIALS, CHOOSE, RUNS, REPORT = "trials", "choose", "runs", "report"  # its jobs, in this order


@dataclass(frozen=True)
class Stage:
    """One job of a study."""

    name: str
    job: SlurmJob
    runs: Sequence[StudyRun] = ()  # that it trains, a task of an array each, where they are known
    num_runs: int = 0
    waits: str = ""  # how it waits for the stage before it, and for `others`: afterok, afterany
    others: Sequence[str] = ()  # numbers of jobs that are in the queue already

    def after(self, before: str | None) -> SlurmJob:
        """Returns the job as one that waits for job `before`, where there is one, and for the others."""
        numbers = [*([before] if before and self.waits else []), *self.others]
        return self.job.after(":".join([self.waits, *numbers])) if numbers else self.job


@dataclass(frozen=True)
class StudySubmission:
    """What is left to do of a study, as jobs.

    An array of trials; a job that measures them, chooses the learning rates and writes the recipes of the runs; an
    array of runs; a job that measures them and writes the results. What is finished or in the queue is left out.
    """

    call: StudyCall
    request: SlurmRequest
    at_a_time: int = 0  # tasks of an array; 0: as many as SLURM starts
    gpu_batch_max: int | None = None
    workers: int | None = None

    def dry_run(self) -> str:
        """Returns the sbatch commands as a script; reads no shards, and writes nothing."""
        training = new_training(self.call, jobs=1, trains=False)
        paths = self._check(training, looks=False)
        return self._shell(self._stages(training, paths))

    def submit(self, checks_data: bool) -> str:
        """Submits the jobs and returns what to print; InputError where a run could not be trained.

        Where sbatch refuses one, those before it stay, and the same command submits the rest.
        """
        out = self.call.out
        make_folder(out, "--out")
        with lock(out / "submitting", find_placement()):
            training = prepared_training(self.call, jobs=1, trains=False)
            paths = self._check(training, looks=checks_data)
            stages = self._stages(training, paths)
            if not stages:
                return f"nothing was submitted: what is left of {out} is in the queue, as squeue --me shows"
            kept = out / "jobs.sh"
            self.request.keep_setup(out)
            write_text(kept, self._shell(stages))
            return self._submitted(stages, training, kept)

    def _submitted(self, stages: list[Stage], training: StudyTraining, kept: Path) -> str:
        numbers: dict[str, str] = {}
        for stage in stages:
            training.write_recipes(stage.runs)
            numbers[stage.name] = stage.after(next(reversed(numbers.values()), None)).submit(kept)
            for task, run in enumerate(stage.runs):
                RunFolder(run.folder).note_submission(f"{numbers[stage.name]}_{task}")
            write_json(self.call.out / JOBS, numbers)
        each = f"{self.request.nodes} × {self.request.gpus_per_node} processes each"
        does = {
            TRIALS: f"trains {{}} trials, {each}", CHOOSE: "chooses the learning rates by them",
            RUNS: f"trains {{}} runs, {each}", REPORT: f"measures, and writes {self.call.out}/study.md",
        }  # fmt: skip
        told = [f"job {numbers[stage.name]} {does[stage.name].format(stage.num_runs)}" for stage in stages]
        return "\n".join(
            [
                *told,
                f"  superclip status {shlex.quote(str(training.runs_in))}",
                f"  scancel {' '.join(numbers.values())}",
            ]
        )

    def _stages(self, training: StudyTraining, paths: list[Path]) -> list[Stage]:
        """Returns the jobs of what is left, none where all of that is in the queue.

        Args:
            paths: what they read and write.
        """
        queue = my_jobs() or {}
        arrays = {job.task.partition("_")[0] for job in queue.values()}
        earlier = {name for name, number in submitted_jobs(self.call.out).items() if number in arrays}

        def sorted_out(runs: list[StudyRun]) -> tuple[list[StudyRun], list[str]]:
            """Returns those to submit, equal ones once, and the jobs that train others."""
            open_ = {run.folder: run for run in runs if not is_finished(run)}
            jobs = {folder: RunFolder(folder).submitted_job() for folder in open_}
            there = {job.partition("_")[0] for job in jobs.values() if job in queue}
            return [run for folder, run in open_.items() if jobs[folder] not in queue], sorted(there)

        chosen = training.chosen_before()
        if chosen is None:
            trials, there = sorted_out(training.trials())
            if not trials and {CHOOSE, RUNS, REPORT} <= earlier:
                return []
            first = [self._array(TRIALS, trials, paths)] if trials else []
            chosen_runs, report = self._chosen_runs(training, paths), self._command(REPORT, [], paths)
            return [*first, self._command(CHOOSE, there, paths), chosen_runs, report]
        runs, there = sorted_out(training.runs(chosen))
        if not runs and REPORT in earlier:
            return []
        return [*([self._array(RUNS, runs, paths)] if runs else []), self._command(REPORT, there, paths)]

    def _array(self, name: str, runs: list[StudyRun], paths: list[Path]) -> Stage:
        lines = [["--runs"], *([str(run.folder)] for run in runs)]
        return Stage(name, self._training(name, lines, len(runs), paths), runs, len(runs))

    def _chosen_runs(self, training: StudyTraining, paths: list[Path]) -> Stage:
        """Returns the array of the runs whose learning rates, and so whose folders, an earlier stage writes down."""
        number = len(training.runs({}))
        job = self._training(RUNS, [["--runs-in", str(self.call.out / RUNS_LIST)]], number, paths)
        return Stage(RUNS, job, num_runs=number, waits="afterok")

    def _training(self, name: str, runs: list[list[str]], number: int, paths: list[Path]) -> SlurmJob:
        arguments = run_arguments(self.call.data, self.gpu_batch_max, self.workers, self.call.settings)
        array = f"0-{number - 1}{f'%{self.at_a_time}' if self.at_a_time else ''}"
        return self.request.training(self._job_name(name), self.call.out, runs, arguments, paths, array)

    def _command(self, name: str, others: list[str], paths: list[Path]) -> Stage:
        job = self.request.command(self._job_name(name), self.call.out, [*self.call.arguments, "--only", name], paths)
        return Stage(name, job, waits="afterany", others=others)

    def _job_name(self, stage: str) -> str:
        return f"{self.call.out.name}-{stage}"

    def _check(self, training: StudyTraining, looks: bool) -> list[Path]:
        """Returns what the jobs read and write; looks for the shards, or counts them in their patterns.

        Raises InputError where a run could not be trained, or its folder holds another.
        """
        request, different = self.request, {}
        for run in [*training.trials(), *training.runs(training.chosen_before() or {})]:
            training.check_folder(run)
            there = RunFolder(run.folder).record().get("plan", {}).get("world_size")
            if there not in (None, request.nodes * request.gpus_per_node):
                raise InputError(
                    f"{run.folder} holds a run of {there} processes, not {request.nodes} × {request.gpus_per_node}: "
                    f"the runs of a study train on equally many; give {training.runs_flag} another folder"
                )
            if not is_finished(run):
                plan = make_plan(
                    read_recipe(run.recipe, dict(run.set)), request.nodes, request.gpus_per_node, self.call.data,
                    self.gpu_batch_max, self.workers, request.device,
                )  # fmt: skip
                shards = plan.data, plan.workers, plan.slices_per_pass, plan.slice_samples, plan.recipe.long_caption
                different[shards] = plan
        for plan in different.values():
            if looks:
                plan.check_data()
            else:
                plan.check_shards()
        read = [path for plan in different.values() for path in paths_of(plan)]
        read += self.call.settings.folders()
        return list(dict.fromkeys([training.runs_in, *folders_of([self.call.arguments[1]]), *read]))

    @staticmethod
    def _shell(stages: list[Stage]) -> str:
        lines, before = ["#!/bin/bash", ABOUT], None
        for stage in stages:
            job = stage.after(before)
            waits = f"--dependency={job.options.get('dependency')}"
            command = job.shell().replace(f"'{waits}'", f'"{waits}"')  # a variable is in it, which shlex has quoted
            lines.append(f"{stage.name}=$({command})")
            before = f"${{{stage.name}%%;*}}"
        return "\n".join(lines) + "\n"
