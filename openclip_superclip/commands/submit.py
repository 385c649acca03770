"""superclip submit: trains a recipe as a SLURM job."""

import argparse
import shlex
import sys
from typing import TYPE_CHECKING

from ..errors import InputError
from .options import (
    add_run_options,
    add_slurm_options,
    all_settings,
    run_settings,
    sbatch_joined,
    slurm_request,
    with_sites_stage,
)

if TYPE_CHECKING:
    from ..runs.slurm import Submission


def main(argv: list[str]) -> int:
    """Writes the sbatch command beside the run, submits it and prints how to watch it; returns the exit code."""
    options = _parse(argv)
    from ..runs.slurm import Submission

    submission = Submission(
        options.recipe, slurm_request(options), all_settings(options), options.out, options.data,
        options.gpu_batch_max, options.workers, options.engine, options.settings, options.rehearse,
    )  # fmt: skip
    if options.dry_run or options.skip_data_check:
        for warning in submission.plan.check_shards():
            print(f"superclip submit: {warning}", file=sys.stderr)
    if options.dry_run:
        print(submission.shell(), end="")
        return 0
    if not options.skip_data_check:
        submission.plan.check_data()
    print(_submitted(submission.submit(), submission))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip submit",
        description="Trains a recipe as a SLURM job, which resumes after a time limit, a preemption or the death of a "
        "node. Several runs of a study: superclip study --slurm.",
        epilog="example: superclip submit datacomp1b/superclip_vit-b-16_512m_bs16k --nodes 4",
    )
    add_run_options(parser)
    add_slurm_options(parser, gpus_per_node=8)
    parser.add_argument(
        "--rehearse", action="store_true", help="train some minutes with superclip rehearse, into runs/NAME-rehearsal"
    )
    options = parser.parse_args(sbatch_joined(argv))
    options.settings = run_settings(options)
    if options.rehearse and (given := options.settings.arguments()):
        raise InputError(f"{given[0]} does nothing with --rehearse: leave one of them out")
    if not options.rehearse:
        options.settings = with_sites_stage(options.settings)
    return options


def _submitted(number: str, submission: "Submission") -> str:
    run, request = submission.folder.path, submission.request
    processes = f"{request.nodes} × {request.gpus_per_node} processes"
    return "\n".join(
        [
            f"job {number} is in the queue: {run}, {processes}; {submission.script}",
            f"  squeue --jobs {number}",
            f"  tail -F {shlex.quote(f'{run}/slurm-{number}.out')}",
            f"  superclip status {shlex.quote(str(run))}",
            f"  scancel {number}",
        ]
    )
