"""superclip run: trains a recipe here, on the GPUs of this machine or, under srun, of all nodes of the job."""

import argparse
import shlex
import sys

from ..rules import at_least
from .options import add_nproc, add_run_options, all_settings, run_settings


def main(argv: list[str]) -> int:
    """Trains and returns the exit code: 0 finished, 1 failed, 75 to be requeued, 128 + n stopped by signal n."""
    options = _parse(argv)
    from ..environment import check_horovod
    from ..runs.folder import recipe_and_folder
    from ..runs.machines import find_placement
    from ..runs.node import NodeRun
    from ..runs.plan import make_plan
    from ..runs.process import QUEUE_AGAIN, Stopped, stopped_by_signals

    placement = find_placement()
    recipe, folder = recipe_and_folder(options.recipe, options.set, options.out, options.data)
    plan = make_plan(
        recipe, placement.num_nodes, options.nproc or placement.num_processes(options.device), options.data,
        options.gpu_batch_max, options.workers, options.device,
    )  # fmt: skip

    def node_run():
        return NodeRun(plan, placement, folder, options.set, options.engine, options.settings)

    if options.dry_run:
        if placement.node == 0:
            plan.warnings.extend(plan.check_shards())
            print(_show(node_run()))
        return 0
    if options.engine == "horovod":
        check_horovod()
    try:
        with stopped_by_signals():
            code = node_run().run()
            while code == QUEUE_AGAIN and placement.job is None:  # where no job is to be put into the queue again
                code = node_run().run()
            return code
    except Stopped as stop:
        print(f"superclip run: stopped by {stop}; the same command resumes", file=sys.stderr, flush=True)
        return stop.exit_code


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip run",
        description="Trains a recipe into a folder and resumes where it stopped. Starts a process for each GPU of "
        "this machine; under srun, with one task a node, of every node of the job.",
        epilog="example: superclip run demo/superclip_demo-model_8k_bs64 --device cpu",
    )
    add_run_options(parser)
    add_nproc(parser)
    parser.add_argument("--dry-run", action="store_true", help="print arithmetic and command, train nothing")
    options = parser.parse_args(argv)
    at_least(options, nproc=1)
    options.settings = run_settings(options)
    options.set = all_settings(options)
    return options


def _show(run) -> str:
    plan = run.plan
    return "\n".join(
        [
            f"{plan.nodes} × {plan.gpus_per_node} processes: {plan.batch_size} samples each × {plan.world_size} × "
            f"{plan.accum_freq} accumulated = {plan.global_batch_size} samples a step",
            f"{plan.steps} steps in {plan.num_slices} slices of {plan.slice_samples} samples, into {run.folder.path}",
            *(f"warning: {warning}" for warning in plan.warnings),
            shlex.join(run.ranks.command()),
        ]
    )
