"""superclip run: trains a recipe here, on the GPUs of this machine or, under srun, of all nodes of the job."""

import argparse
import shlex
import sys
from pathlib import Path

from ..errors import InputError
from ..running.training_engine import ENGINES


def main(argv: list[str]) -> int:
    """Trains and returns the exit code: 0 finished, 1 failed, 75 to be queued again, 128 + n stopped by signal n."""
    options = _parse(argv)
    from ..optional_dependencies import check_horovod
    from ..planning.plan import make_plan
    from ..running.node_run import NodeRun
    from ..running.placement import find_placement
    from ..running.run_folder import recipe_and_folder
    from ..running.stop_signals import Stopped, stopped_by_signals

    placement = find_placement()
    recipe, folder = recipe_and_folder(options.recipe, options.set, options.out)
    plan = make_plan(
        recipe, placement.num_nodes, options.nproc or placement.num_processes(options.device), options.data,
        options.gpu_batch_max, options.workers, options.device,
    )  # fmt: skip
    run = NodeRun(plan, placement, folder, options.set, options.engine)
    if options.dry_run:
        if placement.node == 0:
            print(_show(run))
        return 0
    if options.engine == "horovod":
        check_horovod()
    try:
        with stopped_by_signals():
            return run.run()
    except Stopped as stop:
        print(f"superclip run: stopped by {stop}; the same command goes on", file=sys.stderr, flush=True)
        return stop.exit_code


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip run",
        description="Trains a recipe into a folder, from where it stopped before. Starts a process for each GPU of "
        "this machine; under srun, with one task a node, of every node of the job.",
    )
    add_run_options(parser)
    parser.add_argument(
        "--nproc", type=int, metavar="N", help="processes on this machine (default: its GPUs; one for --device cpu)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print arithmetic and command, train nothing")
    options = parser.parse_args(argv)
    if options.nproc is not None and options.nproc < 1:
        raise InputError(f"--nproc is {options.nproc}; expected 1 or more")
    options.set = settings(options.set)
    return options


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Adds what makes a plan of a recipe, for `superclip plan`, `run` and `submit`."""
    parser.add_argument("recipe", metavar="RECIPE", help="a file, or a name that `superclip recipes` lists")
    parser.add_argument(
        "--data", metavar="SHARDS", help="brace pattern of shards, in quotes, no * or folder (default: the recipe's)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="another value for a field of the recipe"
    )
    parser.add_argument("--gpu-batch-max", type=int, metavar="N", help="samples that fit a GPU: more are accumulated")
    parser.add_argument("--workers", type=int, metavar="N", help="data-loading processes of each GPU's process")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="what trains (default: %(default)s)")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds what `superclip run` and `superclip submit` have in common."""
    add_recipe_options(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: runs/NAME)")
    parser.add_argument(
        "--engine", choices=ENGINES, default="torchrun",
        help="what averages the ranks' gradients: torch.distributed, or Horovod (default: %(default)s)",
    )  # fmt: skip


def settings(pairs: list[str]) -> dict[str, str]:
    """Returns the values of --set."""
    for pair in pairs:
        if "=" not in pair:
            raise InputError(f"--set is {pair}; expected KEY=VALUE, such as lr=5e-4")
    return dict(pair.split("=", 1) for pair in pairs)


def _show(run) -> str:
    plan = run.plan
    return "\n".join(
        [
            f"{plan.nodes} × {plan.gpus_per_node} processes: {plan.batch_size} samples each × {plan.world_size} × "
            f"{plan.accum_freq} accumulated = {plan.global_batch_size} samples a step",
            f"{plan.steps} steps in {plan.num_slices} slices of {plan.slice_samples} samples, into {run.folder.path}",
            shlex.join(run.ranks.command()),
        ]
    )
