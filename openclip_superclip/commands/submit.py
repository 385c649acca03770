"""superclip submit: trains a recipe, or a batch-size study, as a SLURM job."""

import argparse

from ..errors import InputError
from .recipe_options import add_run_options, settings

SBATCH = ("partition", "account", "qos", "time", "constraint")  # options that are handed on as they are


def main(argv: list[str]) -> int:
    """Writes the sbatch command beside the run, submits it and prints how to watch it; returns the exit code."""
    options = _parse(argv)
    from ..running.submission import Submission

    skip_data_check, dry_run = options.pop("skip_data_check"), options.pop("dry_run")
    submission = Submission(**options)
    if dry_run or skip_data_check:
        submission.check_shards()
    if dry_run:
        print(submission.job.script(), end="")
        return 0
    if not skip_data_check:
        submission.check_data()
    print(_submitted(submission.submit(), submission))
    return 0


def _parse(argv: list[str]) -> dict:
    parser = argparse.ArgumentParser(
        prog="superclip submit",
        description="Trains a recipe as a SLURM job, which resumes after a time limit, a preemption or the death of a "
        "node. With --array, the same study at several batch sizes, a task each.",
        epilog="example: superclip submit datacomp1b/superclip_vit-b-16_512m_bs16k --nodes 4",
    )
    add_run_options(parser)
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--gpus-per-node", type=int, default=8, metavar="N", help="processes of --device cpu (default: %(default)s)"
    )
    parser.add_argument(
        "--array", type=_listed, default=[], metavar="1k,2k,…",
        help="batch sizes of the study, as its recipes' names end; --out holds the runs",
    )  # fmt: skip
    parser.add_argument(
        "--methods", type=_listed, default=[], metavar="clip,superclip", help="and methods, as the names begin"
    )
    parser.add_argument("--max-running", type=int, default=0, metavar="N", help="tasks of an array at a time")
    for name in SBATCH:
        parser.add_argument(f"--{name}", help="sbatch's")
    parser.add_argument(
        "--cpus-per-node", type=int, metavar="N", help="take this many CPUs of each shared node (default: whole nodes)"
    )
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="NAME=VALUE", help="any other option of sbatch: mem=400G"
    )
    container = parser.add_mutually_exclusive_group()
    container.add_argument("--container-image", metavar="IMAGE", help="train in a container of pyxis")
    container.add_argument("--apptainer", metavar="IMAGE", help="train in a container of Apptainer")
    parser.add_argument("--mounts", metavar="PATHS", help="what the container also sees: /data,/scratch:/scratch")
    parser.add_argument(
        "--skip-data-check",
        action="store_true",
        help="count the shards, and do not look for them: the nodes see them, this machine does not",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the command, read no shards, submit nothing")
    options = parser.parse_args(argv)
    if options.mounts and not (options.container_image or options.apptainer):
        raise InputError(f"--mounts is {options.mounts}; expected --container-image or --apptainer beside it")
    if options.methods and not options.array:
        raise InputError(f"--methods is {','.join(options.methods)}; expected --array beside it, the batch sizes")
    if options.max_running and not options.array:
        raise InputError(f"--max-running is {options.max_running}; expected --array beside it, the batch sizes")
    values = vars(options)
    named = {name: values.pop(name) for name in SBATCH}
    others = (option.removeprefix("--").partition("=") for option in options.sbatch)
    sbatch = {name: value for name, value in named.items() if value} | {name: value for name, _, value in others}
    return {**values, "set": settings(options.set), "sbatch": sbatch}


def _listed(text: str) -> list[str]:
    return text.split(",")


def _submitted(number: str, submission) -> str:
    job = submission.job
    what = f"{len(job.runs)} runs" if submission.array else job.runs[0]
    output = job.options["output"].replace("%A_%a", f"{number}_0").replace("%j", number)
    states = " ".join(f"{run}/state.json" for run in job.runs)
    processes = f"{submission.nodes} × {submission.gpus_per_node} processes"
    return "\n".join(
        [
            f"job {number} is in the queue: {what}, {processes}; {submission.script}",
            f"  squeue --jobs {number}",
            f"  tail -F {output}",
            f"  cat {states}",
            f"  scancel {number}",
        ]
    )
