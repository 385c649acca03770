"""The job script that `superclip submit` sends: slurm/train.sbatch with its own lines filled in."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..shipped_files import shipped_folder

FIRST_TO_LAST = re.compile(r"#SBATCH .*\n(?:.*\n)*#SBATCH .*\n")


@dataclass(frozen=True)
class Job:
    """What one sbatch command starts."""

    runs: Sequence[str]  # folders; several make an array, a task each
    arguments: Sequence[str] = ()  # of every `superclip run`, after recipe and folder
    options: Mapping[str, str | None] = field(default_factory=dict)  # sbatch's; None takes the template's line away
    path: str = ""  # the folder of `superclip`, where it is not in a container
    container: str = ""  # or what srun needs before a command in one
    max_running: int = 0  # tasks of an array at a time; 0 is any number


def template() -> str:
    """Returns slurm/train.sbatch."""
    return (shipped_folder("slurm") / "train.sbatch").read_text()


def job_script(template: str, job: Job) -> str:
    """Returns the script of a job."""
    options = dict(job.options)
    if len(job.runs) > 1:
        options["array"] = f"0-{len(job.runs) - 1}" + (f"%{job.max_running}" if job.max_running else "")
    head = FIRST_TO_LAST.search(template)
    kept = [_filled(line, options) for line in head[0].splitlines()]
    added = [f"#SBATCH {_option(name, value)}" for name, value in options.items() if value is not None]
    lines = [line for line in kept if line is not None] + added + ["", *_what_is_asked_for(job), ""]
    return template[: head.start()] + "\n".join(lines) + template[head.end() :]


def _filled(line: str, options: dict[str, str | None]) -> str | None:
    """Returns a line of the template with the option's value, which is taken out of `options`, or None without it."""
    name = re.match(r"#SBATCH --([\w-]+)", line)[1]
    if name not in options:
        return line
    value = options.pop(name)
    return None if value is None else f"#SBATCH {_option(name, value)}"


def _option(name: str, value: str) -> str:
    return f"--{name}={shlex.quote(value)}" if value else f"--{name}"


def _what_is_asked_for(job: Job) -> list[str]:
    lines = ["# What `superclip submit` was asked for."]
    if job.path:
        lines.append(f"export PATH={shlex.quote(job.path)}:$PATH")
    if job.container:
        lines.append(f"CONTAINER={shlex.quote(job.container)}")
    if len(job.runs) == 1:
        lines.append(f"run={shlex.quote(job.runs[0])}")
    else:
        lines += ["runs=(", *(f"    {shlex.quote(run)}" for run in job.runs), ")", "run=${runs[$SLURM_ARRAY_TASK_ID]}"]
    arguments = f" {shlex.join(job.arguments)}" if job.arguments else ""
    return [*lines, f'set -- "$run/recipe.yaml" --out "$run"{arguments}']
