"""superclip run: trains a recipe here, on the GPUs of this machine or, under srun, of all nodes of the job."""

import shlex
import sys

from ..environment import check_horovod
from ..errors import Parser, at_least
from ..runs.process import EXIT_REQUEUE, Stopped, stopped_by_signals
from ..runs.slurm import ask_job, find_placement
from ..runs.supervisor import NodeTraining
from .options import add_run_options, opened_run


def main(argv: list[str]) -> int:
    """Trains and returns the exit code: 0 finished, 1 failed, 75 to be requeued, 128 + n stopped by signal n."""
    has_script = ask_job("started")
    parser = Parser(
        prog="superclip run",
        description="Trains a recipe into a folder, or resumes it. Starts a process for each GPU of this machine or, "
        "under srun with one task per node, of all nodes of the job. To resume a run, give its folder instead of a "
        "recipe.",
        epilog="example: superclip run demo/superclip_demo-model_8k_bs64 --device cpu",
    )
    add_run_options(parser, here=True)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the batch, the steps and OpenCLIP's command; train nothing"
    )
    options = parser.parse_args(argv)
    at_least(options, nproc=1)
    placement = find_placement()
    run, folder = opened_run(options, parser, placement)
    if options.dry_run:
        if placement.node == 0:
            run.warnings.extend(run.check_shards())
            print(
                f"{run.nodes} × {run.gpus_per_node} processes: {run.batch_size} samples each × {run.world_size} × "
                f"{run.accum_freq} accumulated = {run.global_batch_size} samples per step",
                f"{run.steps} steps in {run.num_slices} slices of {run.slice_samples} samples, into {folder.path}",
                *(f"warning: {warning}" for warning in run.warnings),
                shlex.join(["superclip", "train", *run.openclip_arguments()]),
                sep="\n",
            )
        return 0
    folder.check_is_own()
    if run.settings.engine == "horovod":
        check_horovod()
    try:
        with stopped_by_signals():
            while True:
                code = NodeTraining(run, placement, folder).train()
                if code != EXIT_REQUEUE or placement.num_nodes > 1 or has_script:
                    return code
    except Stopped as stop:
        print(f"superclip run: stopped by {stop}; the same command resumes", file=sys.stderr, flush=True)
        return stop.exit_code
