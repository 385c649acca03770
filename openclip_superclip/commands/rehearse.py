"""superclip rehearse: some minutes of a run on its own machines, and what they tell of the whole."""

import argparse
import sys
from pathlib import Path

from ..errors import InputError
from ..rules import at_least
from .options import add_engine, add_nproc, add_recipe_options, all_settings

STEPS = 100


def main(argv: list[str]) -> int:
    """Rehearses, prints what the whole run will take, writes rehearsal.json; returns 0, or 1 where that failed.

    It has failed, too, where the training that was stopped and resumed is another than the undisturbed one.
    """
    options = _parse(argv)
    from ..runs.folder import recipe_and_folder
    from ..runs.machines import find_placement
    from ..runs.plan import make_plan

    placement = find_placement()
    recipe, out = recipe_and_folder(options.recipe, all_settings(options), options.out, options.data)
    folder = out.path if options.out else Path("runs", f"{recipe.name}-rehearsal")
    plan = make_plan(
        recipe, placement.num_nodes, options.nproc or placement.num_processes(options.device), options.data,
        options.gpu_batch_max, options.workers, options.device,
    )  # fmt: skip
    is_again = placement.restarts > 0  # SLURM has requeued the job
    if placement.node == 0:
        if (folder / "rehearsal.json").exists() or (not is_again and any(folder.glob("*disturbed*/run.json"))):
            raise InputError(f"--out: {folder} holds a rehearsal: remove it, or give --out another folder")
        plan.check_data()
    from ..files import write_json
    from ..runs.process import QUEUE_AGAIN, Stopped
    from ..runs.rehearsal import Rehearsal, other_training, rehearsed_plan, report, report_text
    from ..runs.run import STARTS_WITHOUT_A_SLICE

    for interruptions in range(placement.restarts, STARTS_WITHOUT_A_SLICE):
        rehearsal = Rehearsal(rehearsed_plan(plan, options.steps), placement, folder, options.engine, interruptions)
        try:
            code = rehearsal.run()
        except Stopped as stop:
            then = "a requeued job begins anew" if placement.job else f"remove {folder} to begin anew"
            print(f"superclip rehearse: stopped by {stop}; {then}", file=sys.stderr)
            return stop.exit_code
        if code != QUEUE_AGAIN or placement.job:  # where no job is to be put into the queue again
            break
        print("superclip rehearse: begins anew", file=sys.stderr)
    else:
        raise InputError(f"the rehearsal was begun {STARTS_WITHOUT_A_SLICE} times and interrupted: {folder} tells why")
    if code or placement.node:
        return code
    told = report(plan, rehearsal)
    rehearsal.remove_checkpoints()
    write_json(folder / "rehearsal.json", told)
    print(f"\n{report_text(told)}\n\nsuperclip plan RECIPE --rehearsal {folder}/rehearsal.json plans with it")
    if other := other_training(told):
        print(f"superclip rehearse: the resumed training is not the undisturbed one: {other}", file=sys.stderr)
        return 1
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip rehearse",
        description="Trains some minutes of a recipe as the whole run will train it: batch, precision, data, ranks. "
        "Stops itself by SIGUSR1, resumes, compares that with what was not disturbed, and prints the hours of the "
        "whole run, what limits it and what to change. Under srun, with one task a node, on every node of the job.",
        epilog="example: superclip rehearse demo/superclip_demo-model_8k_bs64 --device cpu --steps 8",
    )
    add_recipe_options(parser)
    add_engine(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="new folder (default: runs/NAME-rehearsal)")
    add_nproc(parser)
    parser.add_argument(
        "--steps", type=int, default=STEPS, metavar="N",
        help="of each of the two slices that are trained, twice (default: %(default)s)",
    )  # fmt: skip
    options = parser.parse_args(argv)
    at_least(options, nproc=1, steps=4)
    return options
