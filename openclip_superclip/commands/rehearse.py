"""superclip rehearse: trains a run for a few minutes on its own machines and estimates the whole
run."""

import shlex
from pathlib import Path

from ..errors import Parser, at_least, to_stderr
from ..files import check_results, write_json
from ..runs.signals import Stopped, stopped_by_signals
from ..runs.slurm import find_placement
from .recipe_options import add_recipe_options, add_settings, opened_run
from .shared_options import add_number


def main(argv: list[str]) -> int:
    """Rehearses, prints an estimate of the whole run and writes rehearsal.json.

    Returns the exit code, which is also 1 if the resumed training differs from the uninterrupted
    one.
    """
    parser = Parser(
        "rehearse",
        "Trains a recipe for a few minutes with the batch, precision, data and ranks of the "
        "whole run. Stops as at SLURM's SIGUSR1, resumes, compares the result with uninterrupted "
        "training, and prints the hours of the whole run, its bottleneck and what to change. "
        "Under srun, with one task per node, it uses all nodes.",
        "demo/superclip_demo-model_8k_bs64 --device cpu --steps 8",
    )
    add_recipe_options(parser, here=True)
    add_settings(parser, "engine")
    parser.option("--out", "new folder (default: runs/NAME-rehearsal)", type=Path, metavar="DIR")
    add_number(parser, "--steps", 100, "steps of each of two slices, which are trained twice", "N")
    options = parser.parse_args(argv)
    at_least(options, nproc=1, steps=4)
    placement = find_placement()
    run, run_folder = opened_run(options, parser, placement, "-rehearsal")
    folder = run_folder.path
    from ..runs.rehearsal import Rehearsal, other_training, rehearsed_run, report, report_text
    from ..runs.unreadable import refuse_bad_files

    check_results(folder, ["rehearsal.json"], '"samples_per_second"')
    rehearsal = Rehearsal(rehearsed_run(run, options.steps), placement, folder)
    if placement.node == 0:
        rehearsal.check_folder()
        refuse_bad_files(run, run.check_data())
    try:
        with stopped_by_signals():
            code = rehearsal.train()
    except Stopped as stop:
        if placement.node:
            return 1
        to_stderr(f"superclip rehearse: stopped by {stop}; remove {folder} to start again")
        # a requeued job would have no more time
        return 1 if stop.before_time_is_up else stop.exit_code
    if code or placement.node:
        return code
    summary = report(run, rehearsal)
    rehearsal.remove_checkpoints()
    write_json(folder / "rehearsal.json", summary)
    machines = f"--nodes {run.nodes} --gpus-per-node {run.gpus_per_node} --device {run.device}"
    machines += f" --workers {run.workers} --gpu-batch-max {run.batch_size}"
    file = shlex.quote(f"{folder}/rehearsal.json")
    plan = f"superclip plan RECIPE {machines} --rehearsal {file}"
    print(f"\n{report_text(summary)}\n\n{plan} uses this estimate")
    if other := other_training(summary):
        to_stderr(
            f"superclip rehearse: the resumed training differs from the uninterrupted one: {other}"
        )
        return 1
    return 0
