"""superclip submit: trains a recipe as a SLURM job."""

import math
import os
import shlex

from ..errors import InputError, Parser, to_stderr, to_stdout
from ..plans.cost import estimate_cost, long_slice
from ..plans.run import Run
from ..runs.folder import RunFolder
from ..runs.lock import lock
from ..runs.slurm import TIME, Placement, SlurmRequest, minutes_of
from ..runs.unreadable import accepted_data
from .recipe_options import (
    add_run_options,
    add_slurm_options,
    folder_of_run,
    planned_run,
    print_plan,
    run_settings,
    slurm_request,
)


def main(argv: list[str]) -> int:
    """Writes the job's script into the run's folder, submits it and prints how to watch it;
    returns the exit code."""
    parser = Parser(
        "submit",
        "Trains a recipe as a SLURM job, which resumes after a time limit, a "
        "preemption or the failure of a node. For several runs, see superclip study --slurm.",
        "datacomp1b/superclip_vit-b-16_512m_bs16k --nodes 4",
    )
    add_run_options(parser, here=False)
    add_slurm_options(parser)
    options = parser.parse_args(argv)

    request = slurm_request(options)
    settings = run_settings(options, "--rehearse" if options.rehearse else "")
    run = planned_run(options, request.nodes, request.gpus_per_node, request.device, settings)
    folder = folder_of_run(options, run)
    folder.check_is_own()
    _check_folder(folder, run)
    if options.rehearse:
        from ..runs.rehearsal import Rehearsal, rehearsed_run

        Rehearsal(rehearsed_run(run, steps=1), Placement(), folder.path).check_folder()
    else:
        hours = estimate_cost(run)["slice_hours"]
        run.warnings.extend(long_slice(run, hours, _hours_of_job(request)))
    command = ["run", *(["--rehearse"] if options.rehearse else []), *run.streams()]
    job = request.training(folder.path / "job.sh", folder.path.name, [folder.path], command)
    if options.dry_run:
        print_plan(run)
        to_stdout(f"\n{job.file}:\n{job.text}", end="")
        return 0
    accepted_data(run, "submit", reads_data=not options.skip_data_check)
    _fetch_pretrained(run)
    with lock(folder.path / "submitting", Placement()):
        _check_folder(folder, run)  # another process may have submitted it
        folder.write(run)
        request.keep_setup(folder.path)
        number = job.submit()
        folder.note_submission(number)
    path = shlex.quote(str(folder.path))
    to_stdout(
        f"job {number} is in the queue: {folder.path}, {request.nodes} × "
        f"{request.gpus_per_node} processes; {job.file}\n"
        f"  squeue --jobs {number}\n"
        f"  tail -F {shlex.quote(f'{folder.path}/slurm-{number}.out')}\n"
        f"  superclip status {path}\n"
        f"  scancel {number}"
    )
    return 0


def _check_folder(folder: RunFolder, run: Run) -> None:
    """Raises InputError if the folder's run is another one, is finished, or is in the queue."""
    folder.check_is_free(Placement())
    if not run.settings.accept_changes:
        folder.check_recipe(run.recipe)
    if folder.is_finished:
        raise InputError(f"{folder.path} is finished: give --out another folder to train it again")


def _fetch_pretrained(run: Run) -> None:
    """Downloads released weights into the cache, since compute nodes may have no internet;
    prints why it cannot."""
    flags = run.recipe.flags
    tag = flags.get("pretrained")
    if not tag or os.path.exists(tag):
        return
    from ..checkpoints.starting_weights import released_file  # imports OpenCLIP

    try:
        released_file(f"{run.recipe.model}:{tag}", "pretrained", flags.get("cache-dir"))
    except InputError as error:
        to_stderr(f"superclip submit: {error}; the job needs them in its cache")


def _hours_of_job(request: SlurmRequest) -> float:
    """Returns the hours of a job's time limit, at the end of which a slice is lost; infinity
    without one."""
    limit = os.environ.get("SBATCH_TIMELIMIT") or request.sbatch.get("time", TIME)
    return (minutes_of(limit) or math.inf) / 60
