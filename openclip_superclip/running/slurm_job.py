"""A job of SLURM: a script of slurm/, with all that it is asked for on sbatch's command line."""

import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import InputError
from ..shipped_files import shipped_folder

TRAINING, COMMAND = "training_job.sh", "command_job.sh"  # trains runs; runs one `superclip` command


@dataclass(frozen=True)
class SlurmJob:
    """What one sbatch command starts."""

    script: str  # TRAINING or COMMAND
    options: Mapping[str, str]  # sbatch's, name: value, "" where it has none
    words: Sequence[Sequence[str]] = field(default_factory=tuple)  # the script's arguments, a line each

    def command(self) -> list[str]:
        """Returns the sbatch command, which prints the job's number."""
        return [part for line in self._lines() for part in line]

    def after(self, dependency: str) -> "SlurmJob":
        """Returns the job as one that starts when `dependency` (afterok:17) holds, and ends where it never can."""
        return replace(self, options={**self.options, "dependency": dependency, "kill-on-invalid-dep": "yes"})

    def shell(self) -> str:
        """Returns the command as a shell takes it, a line for each part."""
        return " \\\n    ".join(shlex.join(line) for line in self._lines())

    def submit(self, kept: Path) -> str:
        """Submits the job and returns its number; InputError, which names `kept`, its script, where that fails."""
        if shutil.which("sbatch") is None:
            raise InputError(f"sbatch was not found here: submit on a login node, with bash {shlex.quote(str(kept))}")
        done = subprocess.run(self.command(), capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"sbatch refused {kept}: {' '.join(done.stderr.split())}")
        return done.stdout.strip().partition(";")[0]

    def _lines(self) -> list[list[str]]:
        return [
            ["sbatch", "--parsable"],
            *([f"--{name}={value}" if value else f"--{name}"] for name, value in self.options.items()),
            [str(shipped_folder("slurm") / self.script)],
            *map(list, self.words),
        ]
