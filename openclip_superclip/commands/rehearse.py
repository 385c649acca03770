"""superclip rehearse: trains a run for a few minutes on its own machines, and estimates the whole run."""

import argparse
import sys
from pathlib import Path

from ..errors import InputError
from ..rules import at_least
from .options import add_recipe_options, add_settings, opened_run

STEPS = 100


def main(argv: list[str]) -> int:
    """Rehearses, prints an estimate of the whole run, writes rehearsal.json; returns 0, or 1 if it failed.

    It also fails if a stopped and resumed training differs from an uninterrupted one.
    """
    from ..runs.slurm import ask_job, find_placement

    ask_job("started")
    parser = _parser()
    options = parser.parse_args(argv)
    at_least(options, nproc=1, steps=4)
    placement = find_placement()
    run, out = opened_run(options, parser, placement)
    folder = out.path if options.out or Path(options.recipe).is_dir() else Path("runs", f"{run.recipe.name}-rehearsal")
    is_again = placement.restarts > 0 or int(placement.step or 0) > 0  # requeued, or started again in its allocation
    if placement.node == 0:
        if (folder / "rehearsal.json").exists() or (not is_again and any(folder.glob("*disturbed*/run.json"))):
            raise InputError(f"--out: {folder} holds a rehearsal: remove it, or give --out another folder")
        run.check_data()
    from ..files import write_json
    from ..runs.node import STARTS_WITHOUT_A_SLICE
    from ..runs.process import EXIT_REQUEUE, Stopped
    from ..runs.rehearsal import Rehearsal, other_training, rehearsed_run, report, report_text

    for interruptions in range(placement.restarts, STARTS_WITHOUT_A_SLICE):
        rehearsal = Rehearsal(rehearsed_run(run, options.steps), placement, folder, interruptions)
        try:
            code = rehearsal.train()
        except Stopped as stop:
            then = "a requeued job begins anew" if placement.job else f"remove {folder} to begin anew"
            print(f"superclip rehearse: stopped by {stop}; {then}", file=sys.stderr)
            return stop.exit_code
        if code != EXIT_REQUEUE or placement.job:  # there is no job script to restart it
            break
        print("superclip rehearse: begins anew", file=sys.stderr)
    else:
        raise InputError(f"the rehearsal was begun {STARTS_WITHOUT_A_SLICE} times and interrupted: see {folder}")
    if code or placement.node:
        return code
    summary = report(run, rehearsal)
    rehearsal.remove_checkpoints()
    write_json(folder / "rehearsal.json", summary)
    print(f"\n{report_text(summary)}\n\nsuperclip plan RECIPE --rehearsal {folder}/rehearsal.json plans with it")
    if other := other_training(summary):
        print(f"superclip rehearse: the resumed training differs from the undisturbed one: {other}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="superclip rehearse",
        description="Trains some minutes of a recipe as the whole run will train it: batch, precision, data, ranks. "
        "Stops itself by SIGUSR1, resumes, compares that with the undisturbed training, and prints the hours of the "
        "whole run, what limits it and what to change. Under srun, with one task per node, on every node of the job.",
        epilog="example: superclip rehearse demo/superclip_demo-model_8k_bs64 --device cpu --steps 8",
    )
    add_recipe_options(parser, here=True)
    add_settings(parser, "engine")
    parser.add_argument("--out", type=Path, metavar="DIR", help="new folder (default: runs/NAME-rehearsal)")
    parser.add_argument(
        "--steps", type=int, default=STEPS, metavar="N",
        help="of each of the two slices that are trained, twice (default: %(default)s)",
    )  # fmt: skip
    return parser
