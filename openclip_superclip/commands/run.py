"""superclip run: trains a recipe here, on the GPUs of this machine or, under srun, of all nodes
of the job."""

import argparse
import shlex
import signal

from ..environment import check_horovod
from ..errors import InputError, Parser, at_least, to_stderr
from ..plans.run import Run
from ..runs.folder import RunFolder
from ..runs.launcher import train
from ..runs.recovery import USER, Failure
from ..runs.signals import EXIT_REFUSED, Stopped, stopped_by_signals
from ..runs.slurm import Placement, find_placement
from .recipe_options import add_run_options, opened_run
from .shared_options import add_switch


def main(argv: list[str]) -> int:
    """Trains and returns the exit code: 0 finished, 75 try again, other codes stop: 128 + n stopped
    by signal n.

    Of several nodes, only the first decides: srun's exit code is the largest, and the others end
    with 0 or 1, or 192 if the user must change something.
    """
    parser = Parser(
        "run",
        "Trains a recipe into a folder, or resumes it. Starts a process for each GPU of this "
        "machine or, under srun with one task per node, of all nodes of the job. To resume a run, "
        "give its folder instead of a recipe.",
        "demo/superclip_demo-model_8k_bs64 --device cpu",
    )
    add_run_options(parser, here=True)
    add_switch(
        parser, "--dry-run", "print the batch, the steps and OpenCLIP's command; train nothing"
    )
    options = parser.parse_args(argv)
    at_least(options, nproc=1)
    placement = find_placement()
    try:
        with stopped_by_signals():
            try:
                return _run(options, parser, placement)
            except InputError as error:
                if placement.node == 0:
                    raise
                to_stderr(f"error: {error}")
                is_users = Failure.of(error).kind == USER
                return EXIT_REFUSED if is_users else 1
            finally:
                # srun's signal after another node has ended must not change the exit code
                if placement.num_nodes > 1:
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except Stopped:
        if placement.node:
            return 1
        raise


def _run(options: argparse.Namespace, parser: Parser, placement: Placement) -> int:
    run, folder = opened_run(options, parser, placement)
    if options.dry_run:
        _print_plan(run, folder, placement)
        return 0
    folder.check_is_own()
    if run.settings.engine == "horovod":
        check_horovod()
    return train(run, placement, folder)


def _print_plan(run: Run, folder: RunFolder, placement: Placement) -> None:
    if placement.node:
        return
    run.warnings.extend(run.check_shards())
    print(
        f"{run.nodes} × {run.gpus_per_node} processes: {run.batch_size} samples each × "
        f"{run.world_size} × {run.accum_freq} accumulated = {run.global_batch_size} samples "
        "per step",
        f"{run.steps} steps in {run.num_slices} slices of {run.slice_samples} samples, into "
        f"{folder.path}",
        *(f"warning: {warning}" for warning in run.warnings),
        shlex.join(["superclip", "train", *run.openclip_arguments()]),
        sep="\n",
    )
