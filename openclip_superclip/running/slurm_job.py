"""A job of SLURM that trains: slurm/training_job.sh, with all that it is asked for on sbatch's command line."""

import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from ..shipped_files import shipped_folder


@dataclass(frozen=True)
class SlurmJob:
    """What one sbatch command starts."""

    runs: Sequence[str]  # folders with recipes; several make an array, a task each
    options: Mapping[str, str] = field(default_factory=dict)  # sbatch's, name: value, "" where it has none
    arguments: Sequence[str] = ()  # of every `superclip run`, after recipe and folder
    superclip: str = ""  # the file to run, where it is not in a container
    container: str = ""  # or what srun needs before a command in one

    def command(self) -> list[str]:
        """Returns the sbatch command, which prints the job's number."""
        return [part for line in self._lines() for part in line]

    def script(self) -> str:
        """Returns a script of that command."""
        about = "# Submits again what `superclip submit` has submitted; a run resumes from its last checkpoint."
        command = " \\\n    ".join(shlex.join(line) for line in self._lines())
        return f"#!/bin/bash\n{about}\n{command}\n"

    def _lines(self) -> list[list[str]]:
        where = {"--superclip": self.superclip, "--container": self.container}
        return [
            ["sbatch", "--parsable"],
            *([f"--{name}={value}" if value else f"--{name}"] for name, value in self.options.items()),
            [str(shipped_folder("slurm") / "training_job.sh")],
            *([name, value] for name, value in where.items() if value),
            ["--runs"],
            *([run] for run in self.runs),
            ["--", *self.arguments],
        ]

    def submit(self, script: Path) -> str:
        """Submits the job and returns its number; InputError, which names the script, where that cannot be done."""
        if shutil.which("sbatch") is None:
            raise InputError(f"sbatch was not found here: submit on a login node, with bash {shlex.quote(str(script))}")
        done = subprocess.run(self.command(), capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"sbatch refused {script}: {' '.join(done.stderr.split())}")
        return done.stdout.strip().partition(";")[0]
