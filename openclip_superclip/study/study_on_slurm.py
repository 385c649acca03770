"""A study on SLURM: an array that trains its runs, and a job that waits for them, measures and
reports."""

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..files import json_or_empty, make_folder, write_json
from ..plans.run import Run
from ..runs.lock import lock
from ..runs.slurm import SlurmJob, SlurmRequest, find_placement, my_jobs
from .configuration import ConfiguredStudy
from .runs import check_plans, runs_of, unfinished
from .study_run import StudyRun
from .training import write_data

# the names of the jobs
RUNS = "runs"
REPORT = "report"
REPORT_JOB = "report_job.json"  # in a study's folder: the number of the last job that reports


@dataclass(frozen=True, kw_only=True)
class StudySubmission:
    """What is left of a study as jobs: an array that trains its runs, and a job that measures them
    and reports."""

    configured: ConfiguredStudy
    request: SlurmRequest
    jobs: int | None  # at a time, of an array; None: as many as SLURM starts
    gpu_batch_max: int | None
    workers: int | None
    skip_data_check: bool

    def dry_run(self) -> str:
        """Returns the sbatch commands and the scripts of the jobs; reads no shards, and writes
        nothing."""
        runs = unfinished(runs_of(self.configured))
        check_plans(map(self._described, runs), reads_data=False)
        jobs = [self._report()]
        if runs:
            jobs.insert(0, self._array(runs))
        lines = []
        dependency = ""
        for job in jobs:
            *sbatch, file = job.command(dependency)
            lines.append(f"{job.file.stem}=$({' '.join(sbatch)} {shlex.quote(file)})")
            dependency = f"afterany:${{{RUNS}%%;*}}"
        scripts = "\n".join(f"# {job.file}\n{job.text}" for job in jobs)
        return "\n".join([*lines, "", scripts]).removesuffix("\n")

    def submit(self) -> str:
        """Submits the jobs and returns a summary; InputError if a run could not be trained."""
        out = self.configured.out
        queue = my_jobs()
        if queue is None:
            raise InputError(
                "--slurm: squeue does not respond, so queued runs would be submitted again: "
                "try later"
            )
        make_folder(out)
        with lock(out / "submitting", find_placement()):
            write_data(self.configured)
            return self._submit(queue)

    def _submit(self, queue: Collection[str]) -> str:
        """Submits what is not in SLURM's queue and returns a summary."""
        out = self.configured.out
        runs = unfinished(runs_of(self.configured))
        submitted = {run.folder: run.run_folder.submitted_job() for run in runs}
        queued = {job.partition("_")[0] for job in submitted.values() if job in queue}
        runs = [run for run in runs if submitted[run.folder] not in queue]
        report_job = json_or_empty(out / REPORT_JOB).get("job")
        if not runs and report_job in queue:
            return (
                f"nothing was submitted: what is left of {out} is in the queue, as "
                "squeue --me shows"
            )
        check_plans(map(self._described, runs), reads_data=not self.skip_data_check)
        self.request.keep_setup(out)
        jobs = sorted(queued)
        summary = []
        if runs:
            number = self._submit_runs(runs)
            jobs.append(number)
            each = f"{self.request.nodes} × {self.request.gpus_per_node} processes each"
            summary.append(f"job {number} trains {len(runs)} runs, {each}")
        number = self._report().submit(f"afterany:{':'.join(jobs)}" if jobs else "")
        jobs.append(number)
        write_json(out / REPORT_JOB, {"job": number})
        summary.append(f"job {number} measures, and writes {out}/study.md")
        status = f"  superclip status {shlex.quote(str(self.configured.runs_in))}"
        return "\n".join([*summary, status, f"  scancel {' '.join(jobs)}"])

    def _submit_runs(self, runs: Sequence[StudyRun]) -> str:
        """Submits the array that trains runs and returns its number."""
        for run in runs:
            run.run_folder.write(self._described(run))
        number = self._array(runs).submit()
        for task, run in enumerate(runs):
            run.run_folder.note_submission(f"{number}_{task}")
        return number

    def _array(self, runs: Sequence[StudyRun]) -> SlurmJob:
        """Returns the array of jobs that trains runs."""
        out = self.configured.out
        array = f"0-{len(runs) - 1}"
        if self.jobs:
            array += f"%{self.jobs}"
        folders = [run.folder for run in runs]
        command = ["run", *self.configured.streams()]
        return self.request.training(
            out / f"{RUNS}.sh", f"{out.name}-{RUNS}", folders, command, array
        )

    def _report(self) -> SlurmJob:
        """Returns the job that measures the runs and reports."""
        out = self.configured.out
        arguments = [*self.configured.arguments(), "--only", "report"]
        return self.request.command(out / f"{REPORT}.sh", f"{out.name}-{REPORT}", arguments)

    def _described(self, run: StudyRun) -> Run:
        return run.described(
            nodes=self.request.nodes,
            gpus_per_node=self.request.gpus_per_node,
            gpu_batch_max=self.gpu_batch_max,
            workers=self.workers,
        )
