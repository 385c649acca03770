"""superclip submit: trains a recipe, or a batch-size study, as a SLURM job."""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from ..errors import InputError
from .run import add_run_options, settings

SBATCH = ("partition", "account", "qos", "time", "constraint")  # options that are handed on as they are


def main(argv: list[str]) -> int:
    """Writes the job script beside the run, submits it and prints how to watch it; returns the exit code."""
    options = _parse(argv)
    from ..atomic_files import whole_file
    from ..running.job_script import job_script, template
    from ..running.run_folder import RunFolder

    plans = _plans(options)
    job = _job(options, plans)
    script = job_script(template(), job)
    if options.dry_run:
        print(script, end="")
        return 0
    for run, plan in plans.items():
        RunFolder(Path(run)).write_recipe(plan.recipe)
    path = _script_path(options, plans)
    with whole_file(path) as file:
        file.write(script.encode())
    print(_submitted(_sbatch(path), job, path, options))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip submit",
        description="Trains a recipe as a SLURM job, which goes on after a time limit, a preemption or the death of a "
        "node. With --array, the same study at several batch sizes, a task each.",
    )
    add_run_options(parser)
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--gpus-per-node", type=int, default=8, metavar="N", help="processes of --device cpu (default: %(default)s)"
    )
    parser.add_argument(
        "--array", metavar="1k,2k,…", help="batch sizes of the study, as its recipes' names end; --out holds the runs"
    )
    parser.add_argument("--methods", metavar="clip,superclip", help="and methods, as the names begin")
    parser.add_argument("--max-running", type=int, default=0, metavar="N", help="tasks of an array at a time")
    for name in SBATCH:
        parser.add_argument(f"--{name}", help="sbatch's")
    parser.add_argument(
        "--cpus-per-node", type=int, metavar="N", help="take so many CPUs of shared nodes (default: whole nodes)"
    )
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="NAME=VALUE", help="any other option of sbatch: mem=400G"
    )
    container = parser.add_mutually_exclusive_group()
    container.add_argument("--container-image", metavar="IMAGE", help="train in a container of pyxis")
    container.add_argument("--apptainer", metavar="IMAGE", help="train in a container of Apptainer")
    parser.add_argument("--mounts", metavar="PATHS", help="what the container also sees: /data,/scratch:/scratch")
    parser.add_argument(
        "--skip-data-check", action="store_true", help="the nodes see the shards, this machine does not"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the job script, read no shards, submit nothing")
    options = parser.parse_args(argv)
    options.set = settings(options.set)
    if options.mounts and not (options.container_image or options.apptainer):
        raise InputError(f"--mounts is {options.mounts}; expected --container-image or --apptainer beside it")
    if options.methods and not options.array:
        raise InputError(f"--methods is {options.methods}; expected --array beside it, the batch sizes")
    if options.max_running and not options.array:
        raise InputError(f"--max-running is {options.max_running}; expected --array beside it, the batch sizes")
    return options


def _plans(options: argparse.Namespace) -> dict:
    """Returns folder: plan of every run; raises InputError where one cannot be trained."""
    from ..planning.plan import make_plan
    from ..planning.recipe_file import read_recipe
    from ..planning.study import study_recipes
    from ..running.rank_command import engine_flags
    from ..running.run_folder import FINISHED, RunFolder

    wanted = [options.recipe]
    if options.array:
        methods = options.methods.split(",") if options.methods else []
        wanted = study_recipes(options.recipe, options.array.split(","), methods)
    plans = {}
    for name in wanted:
        recipe = read_recipe(name, options.set)
        plan = make_plan(
            recipe, options.nodes, options.gpus_per_node, options.data, options.gpu_batch_max, options.workers,
            options.device,
        )  # fmt: skip
        engine_flags(options.engine, plan.command)
        run = (options.out or Path("runs")) / recipe.name if options.array else options.out or Path("runs", recipe.name)
        RunFolder(run).check_recipe(recipe)
        if RunFolder(run).state().get("state") == FINISHED:
            raise InputError(f"{run} is finished: give --out another folder to train it again")
        if not (options.skip_data_check or options.dry_run):
            plan.check_data()
        plans[str(run)] = plan
    return plans


def _job(options: argparse.Namespace, plans: dict):
    from ..planning.study import study_name
    from ..running.job_script import Job

    runs = list(plans)
    folder = str(options.out or "runs") if options.array else runs[0]
    sbatch = {
        "job-name": study_name(options.recipe) if options.array else Path(runs[0]).name,
        "nodes": str(options.nodes),
        "gpus-per-node": str(options.gpus_per_node) if options.device == "cuda" else None,
        "output": f"{folder}/slurm-{'%A_%a' if options.array else '%j'}.out",
        "chdir": str(Path.cwd()),
        **{name: getattr(options, name) for name in SBATCH if getattr(options, name)},
    }
    if options.cpus_per_node:
        sbatch |= {"exclusive": None, "mem": None, "cpus-per-task": str(options.cpus_per_node)}
    for option in options.sbatch:
        name, _, value = option.removeprefix("--").partition("=")
        sbatch[name] = value
    if "gres" in sbatch:  # where SLURM knows no --gpus-per-node
        sbatch["gpus-per-node"] = None
    arguments = {
        "--data": options.data,
        "--gpu-batch-max": options.gpu_batch_max,
        "--workers": options.workers,
        "--engine": None if options.engine == "torchrun" else options.engine,
        **({"--device": "cpu", "--nproc": options.gpus_per_node} if options.device == "cpu" else {}),
    }
    flags = [part for name, value in arguments.items() if value is not None for part in (name, str(value))]
    flags += [part for key, value in options.set.items() for part in ("--set", f"{key}={value}")]
    container = _container(options)
    path = "" if container else str(Path(sys.executable).parent)
    return Job(runs, flags, sbatch, path, container, options.max_running)


def _container(options: argparse.Namespace) -> str:
    """Returns what srun needs before the command, "" where there is no container."""
    here, image = Path.cwd(), options.container_image or options.apptainer
    for path in (image, options.mounts, str(here) if image else ""):
        if path and " " in path:
            raise InputError(f"'{path}' has a space in it: the job script's CONTAINER takes none; link it elsewhere")
    if options.container_image:
        mounts = ",".join([f"{here}:{here}", *([options.mounts] if options.mounts else [])])
        return f"--container-image={options.container_image} --container-mounts={mounts} --container-workdir={here}"
    if options.apptainer:
        mounts = f" --bind {options.mounts}" if options.mounts else ""
        return f"apptainer exec{' --nv' if options.device == 'cuda' else ''}{mounts} {options.apptainer}"
    return ""


def _script_path(options: argparse.Namespace, plans: dict) -> Path:
    from ..planning.study import study_name

    if options.array:
        return (options.out or Path("runs")) / f"{study_name(options.recipe)}.job.sh"
    return Path(next(iter(plans))) / "job.sh"


def _sbatch(script: Path) -> str:
    """Submits the script and returns the job's number."""
    if shutil.which("sbatch") is None:
        raise InputError(f"sbatch was not found here: submit on a login node; the script is {script}")
    done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"sbatch refused {script}: {' '.join(done.stderr.split())}")
    return done.stdout.strip().partition(";")[0]


def _submitted(number: str, job, script: Path, options: argparse.Namespace) -> str:
    what = f"{len(job.runs)} runs" if options.array else job.runs[0]
    output = job.options["output"].replace("%A_%a", f"{number}_0").replace("%j", number)
    states = " ".join(f"{run}/state.json" for run in job.runs)
    return "\n".join(
        [
            f"job {number} is in the queue: {what}, {options.nodes} × {options.gpus_per_node} processes; {script}",
            f"  squeue --jobs {number}",
            f"  tail -F {output}",
            f"  cat {states}",
            f"  scancel {number}",
        ]
    )
