"""superclip run: trains or rehearses a recipe here, on the GPUs of this machine or, under srun, of
all nodes of the job."""

import argparse
import os
import shutil
import signal

from ..environment import check_horovod
from ..errors import InputError, Parser, at_least, to_stderr, to_stdout
from ..files import check_results, write_json
from ..plans.run import Run
from ..runs.folder import RunFolder
from ..runs.launcher import NodeTraining, train
from ..runs.signals import EXIT_REFUSED, Stopped, stopped_by_signals
from ..runs.slurm import Placement, find_placement
from .recipe_options import add_run_options, opened_run, print_plan
from .shared_options import add_count

REHEARSED_STEPS = 100


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
        "give its folder instead of a recipe. With --rehearse, it trains for a few minutes with "
        "the batch, precision, data and ranks of the whole run, and prints the hours of the whole "
        "run, the peak of memory and the time spent waiting for data.",
        "demo/superclip_demo-model_8k_bs64 --device cpu",
    )
    add_run_options(parser, here=True)
    add_count(
        parser,
        "--steps",
        f"with --rehearse: steps of each of two slices (default: {REHEARSED_STEPS})",
    )
    options = parser.parse_args(argv)
    at_least(options, nproc=1, steps=4)
    if options.steps and not options.rehearse:
        raise InputError(
            "--steps are those of a rehearsal: add --rehearse, or give --set samples=N"
        )
    try:
        placement = find_placement()
    except InputError as error:  # one of several processes must not look like a killed one
        to_stderr(f"error: {error}")
        return EXIT_REFUSED if "SLURM_STEP_ID" in os.environ else 1
    try:
        with stopped_by_signals():
            try:
                return _run(options, parser, placement)
            except InputError as error:
                if placement.node == 0:
                    raise
                to_stderr(f"error: {error}")
                return EXIT_REFUSED
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
        if placement.node == 0:
            print_plan(run)
        return 0
    if options.rehearse:
        return _rehearse(run, folder, placement, options.steps or REHEARSED_STEPS)
    folder.check_is_own()
    if run.settings.engine == "horovod":
        check_horovod()
    return train(run, placement, folder)


def _rehearse(run: Run, run_folder: RunFolder, placement: Placement, steps: int) -> int:
    """Rehearses, prints an estimate of the whole run, writes rehearsal.json, and returns the exit
    code."""
    from ..runs import rehearsal
    from ..runs.unreadable import refuse_bad_files

    folder = run_folder.path
    check_results(folder, ["rehearsal.json"], "samples_per_second")
    rehearsed = rehearsal.Rehearsal(rehearsal.rehearsed_run(run, steps), placement, folder)
    if placement.node == 0:
        rehearsed.check_folder()
        refuse_bad_files(run, run.check_data())
    try:
        code = NodeTraining(rehearsed.run, placement, rehearsed.trained, measures=True).train()
    except Stopped as stop:
        if placement.node:
            return 1
        to_stderr(f"superclip run --rehearse: stopped by {stop}; remove {folder} to start again")
        # a requeued job would have no more time
        return 1 if stop.before_time_is_up else stop.exit_code
    if code or placement.node:
        return code
    summary = rehearsal.report(run, rehearsed)
    shutil.rmtree(rehearsed.trained.checkpoints, ignore_errors=True)
    write_json(folder / "rehearsal.json", summary)
    machines = f"--nodes {run.nodes} --gpus-per-node {run.gpus_per_node} --device {run.device}"
    machines += f" --workers {run.workers} --gpu-batch-max {run.batch_size}"
    speed = f"--samples-per-second {summary['samples_per_second']:g}"
    to_stdout(
        f"\n{rehearsal.report_text(summary, run.world_size)}\n\n"
        f"superclip plan RECIPE {machines} {speed} uses this speed"
    )
    return 0
