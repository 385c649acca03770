"""A study on SLURM: an array of jobs that trains its runs."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..files import make_folder
from ..plans.run import Run
from ..runs.lock import lock
from ..runs.slurm import SlurmJob, SlurmRequest, find_placement, my_jobs
from .configuration import ConfiguredStudy
from .runs import check_plans, runs_of, unfinished
from .study_run import StudyRun
from .training import plan_seeds, write_data

# how to measure the runs
REPORT = "the same command with --only report, without the options of SLURM, writes study.md"


@dataclass(frozen=True, kw_only=True)
class StudySubmission:
    """What is left of a study as an array of jobs that trains its runs."""

    configured: ConfiguredStudy
    request: SlurmRequest
    jobs: int | None  # at a time, of an array; None: as many as SLURM starts
    gpu_batch_max: int | None
    workers: int | None
    skip_data_check: bool

    def dry_run(self) -> str:
        """Returns the sbatch command and the script of the array; reads no shards, and writes
        nothing."""
        runs = unfinished(runs_of(self.configured))
        if not runs:
            return self._nothing("finished")
        check_plans(map(self._described, runs), reads_data=False)
        job = self._array(runs)
        return f"{shlex.join(job.command())}\n\n# {job.file}\n{job.text}".removesuffix("\n")

    def submit(self) -> str:
        """Submits what is not in SLURM's queue and returns a summary; InputError if a run could not
        be trained."""
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
            all_runs = runs_of(self.configured)
            left = unfinished(all_runs)
            runs = [run for run in left if run.run_folder.submitted_job() not in queue]
            if not runs:
                return self._nothing("in the queue" if left else "finished")
            check_plans(map(self._described, runs), reads_data=not self.skip_data_check)
            self.request.keep_setup(out)
            plan_seeds(self.configured, all_runs)
            number = self._submit_runs(runs)
        request = self.request
        return (
            f"job {number} trains {len(runs)} runs, {request.nodes} × {request.gpus_per_node} "
            f"processes each\nWhen all are finished, {REPORT}\n"
            f"  superclip status {shlex.quote(str(self.configured.runs_in))}\n  scancel {number}"
        )

    def _nothing(self, state: str) -> str:
        return f"nothing to submit: what was left of {self.configured.out} is {state}; {REPORT}"

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
        return self.request.training(out / "runs.sh", f"{out.name}-runs", folders, command, array)

    def _described(self, run: StudyRun) -> Run:
        return run.described(
            nodes=self.request.nodes,
            gpus_per_node=self.request.gpus_per_node,
            gpu_batch_max=self.gpu_batch_max,
            workers=self.workers,
        )
