"""A study on SLURM: arrays that train its runs, and jobs that wait for them, tune, measure and report."""

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..files import make_folder, write_json
from ..runs.folder import RunFolder, lock
from ..runs.slurm import SlurmJob, SlurmRequest, cancel, find_placement, folders_of, my_jobs, paths_of
from .study import StudyCall
from .study_run import StudyRun
from .training import JOBS, MACHINES, RUNS_LIST, StudyTraining, prepared_training, submitted_jobs

TRIALS, CHOOSE, RUNS, REPORT = "trials", "choose", "runs", "report"  # its jobs, in this order


@dataclass(frozen=True)
class Stage:
    """One job of a study."""

    name: str
    job: SlurmJob
    runs: Sequence[StudyRun] = ()  # that it trains, one for each task of an array, if they are known
    num_runs: int = 0
    waits: str = ""  # how it waits for the stage before it, and for `others`: afterok, afterany
    others: Sequence[str] = ()  # numbers of jobs that are in the queue already

    def dependency(self, before: str | None) -> str:
        """Returns sbatch's --dependency on job `before`, if there is one, and on the others; "" for none."""
        numbers = [*([before] if before and self.waits else []), *self.others]
        return ":".join([self.waits, *numbers]) if numbers else ""


@dataclass(frozen=True)
class StudySubmission:
    """The rest of a study as jobs.

    An array of trials; a job that measures them, tunes the learning rates and writes the recipes of the runs; an array
    of runs; a job that measures them and writes the results. What is finished or in the queue is left out.
    """

    call: StudyCall
    request: SlurmRequest
    at_a_time: int = 0  # tasks of an array; 0: as many as SLURM starts
    gpu_batch_max: int | None = None
    workers: int | None = None

    @property
    def machines(self) -> dict:
        """What the runs are trained on, as arguments of `make_run`."""
        request = self.request
        return {
            "nodes": request.nodes, "gpus_per_node": request.gpus_per_node, "gpu_batch_max": self.gpu_batch_max,
            "workers": self.workers,
        }  # fmt: skip

    def dry_run(self) -> str:
        """Returns the sbatch commands and the scripts of the jobs; reads no shards, and writes nothing."""
        training = StudyTraining(self.call)
        stages = self._stages(training, self._check(training, reads_data=False))
        lines, before = [], None
        for stage in stages:
            *start, file = stage.job.command(stage.dependency(before))
            lines.append(f"{stage.name}=$({' '.join(start)} {shlex.quote(file)})")
            before = f"${{{stage.name}%%;*}}"
        return "\n".join([*lines, "", *(f"# {stage.job.file}\n{stage.job.text}" for stage in stages)])

    def submit(self, checks_data: bool) -> str:
        """Submits the jobs and returns a summary; InputError if a run could not be trained.

        If sbatch refuses one, those before it stay, and the same command submits the rest.
        """
        out = self.call.out
        make_folder(out, "--out")
        with lock(out / "submitting", find_placement()):
            training = prepared_training(self.call)
            stages = self._stages(training, self._check(training, checks_data))
            if not stages:
                return f"nothing was submitted: what is left of {out} is in the queue, as squeue --me shows"
            self.request.keep_setup(out)
            write_json(out / MACHINES, {**self.machines, "settings": dataclasses.asdict(self.call.settings)})
            numbers = self._submitted(stages, training)
        each = f"{self.request.nodes} × {self.request.gpus_per_node} processes each"
        does = {
            TRIALS: f"trains {{}} trials, {each}", CHOOSE: "tunes the learning rates by them",
            RUNS: f"trains {{}} runs, {each}", REPORT: f"measures, and writes {out}/study.md",
        }  # fmt: skip
        lines = [f"job {numbers[stage.name]} {does[stage.name].format(stage.num_runs)}" for stage in stages]
        status = f"  superclip status {shlex.quote(str(self.call.runs_in))}"
        return "\n".join([*lines, status, f"  scancel {' '.join(numbers.values())}"])

    def _submitted(self, stages: list[Stage], training: StudyTraining) -> dict[str, str]:
        """Submits the jobs and returns their numbers."""
        queue, numbers = my_jobs() or {}, {}
        replaced = {stage.name for stage in stages} & {CHOOSE, REPORT}
        for name, number in submitted_jobs(self.call.out).items():  # which would find the new runs unfinished
            if name in replaced and number in queue and queue[number].state == "PENDING":
                cancel(number)
        for stage in stages:
            training.write_runs(stage.runs, self.machines)
            numbers[stage.name] = stage.job.submit(stage.dependency(next(reversed(numbers.values()), None)))
            for task, run in enumerate(stage.runs):
                RunFolder(run.folder).note_submission(f"{numbers[stage.name]}_{task}")
            write_json(self.call.out / JOBS, numbers)
        return numbers

    def _stages(self, training: StudyTraining, paths: list[Path]) -> list[Stage]:
        """Returns the jobs of what is left; none if all of that is in the queue.

        Args:
            paths: what they read and write.
        """
        queue = my_jobs() or {}
        arrays = {job.task.partition("_")[0] for job in queue.values()}
        earlier = {name for name, number in submitted_jobs(self.call.out).items() if number in arrays}

        def unfinished(runs: list[StudyRun]) -> tuple[list[StudyRun], list[str]]:
            """Returns the runs to submit, equal ones once, and the jobs that train the others."""
            left = {run.folder: run for run in runs if not run.is_finished}
            jobs = {folder: RunFolder(folder).submitted_job() for folder in left}
            queued = {job.partition("_")[0] for job in jobs.values() if job in queue}
            return [run for folder, run in left.items() if jobs[folder] not in queue], sorted(queued)

        def command(name: str, others: Sequence[str] = ()) -> Stage:
            arguments = [*self.call.arguments, "--only", name]
            job = self.request.command(self.call.out / f"{name}.sh", self._job_name(name), arguments, paths)
            return Stage(name, job, waits="afterany", others=others)

        chosen = training.tuned_before()
        if chosen is None:
            trials, queued = unfinished(training.trials())
            if not trials and {CHOOSE, RUNS, REPORT} <= earlier:
                return []
            first = [Stage(TRIALS, self._array(TRIALS, trials, paths), trials, len(trials))] if trials else []
            runs = training.runs({})  # whose learning rates, and so whose folders, an earlier stage writes
            job = self._array(RUNS, runs, paths, self.call.out / RUNS_LIST)
            array = Stage(RUNS, job, num_runs=len(runs), waits="afterok")
            return [*first, command(CHOOSE, queued), array, command(REPORT)]
        runs, queued = unfinished(training.runs(chosen))
        if not runs and REPORT in earlier:
            return []
        first = [Stage(RUNS, self._array(RUNS, runs, paths), runs, len(runs))] if runs else []
        return [*first, command(REPORT, queued)]

    def _array(self, name: str, runs: list[StudyRun], paths: list[Path], runs_list: Path | None = None) -> SlurmJob:
        """Returns the array that trains runs; `runs_list` is the file of their folders if these are not known yet."""
        array = f"0-{len(runs) - 1}{f'%{self.at_a_time}' if self.at_a_time else ''}"
        folders = [] if runs_list else [run.folder for run in runs]
        file = self.call.out / f"{name}.sh"
        return self.request.training(file, self._job_name(name), folders, paths, array=array, runs_list=runs_list)

    def _job_name(self, stage: str) -> str:
        return f"{self.call.out.name}-{stage}"

    def _check(self, training: StudyTraining, reads_data: bool) -> list[Path]:
        """Returns what the jobs read and write; checks the data, or only the number of shards in its patterns.

        Raises InputError if a run could not be trained, or its folder holds another.
        """
        request, call, different = self.request, self.call, {}
        for run in [*training.trials(), *training.runs(training.tuned_before() or {})]:
            training.check_folder(run)
            processes = RunFolder(run.folder).record().get("plan", {}).get("world_size")
            if processes not in (None, request.nodes * request.gpus_per_node):
                raise InputError(
                    f"{run.folder} holds a run of {processes} processes, not {request.nodes} × "
                    f"{request.gpus_per_node}: all runs of a study need the same number; give {call.runs_flag} another "
                    "folder"
                )
            if not run.is_finished:
                plan = run.described(request.device, call.data, call.settings, **self.machines)
                shards = (
                    plan.data,
                    plan.workers,
                    plan.slices_per_pass,
                    plan.slice_samples,
                    plan.recipe.caption_config.long_caption_key,
                )
                different[shards] = plan
        for plan in different.values():
            if reads_data:
                plan.check_data()
            else:
                plan.check_shards()
        read = [path for plan in different.values() for path in paths_of(plan)]
        return list(dict.fromkeys([call.runs_in, *folders_of([call.arguments[1]]), *read]))
