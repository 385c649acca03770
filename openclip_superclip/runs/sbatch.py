"""SLURM job scripts: slurm/train.sbatch filled in, and scripts of one command."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from ..files import make_folder, shipped_folder, write_text

NAMED = ("partition", "account", "qos", "time", "constraint")  # options of sbatch that are passed on unchanged
SETUP = "setup.sh"  # the copy of --setup that a folder keeps
OURS = {  # options of sbatch that the scripts set, and how to change them
    "nodes": "--nodes", "gpus-per-node": "--gpus-per-node", "gpus": "--nodes and --gpus-per-node",
    "cpus-per-task": "--cpus-per-node", "ntasks": "--nodes", "ntasks-per-node": "--gpus-per-node",
    "array": "superclip study --slurm", "job-name": "--out", "output": "--out", "chdir": "cd DIR before the command",
    **dict.fromkeys(("signal", "requeue", "no-requeue", "open-mode"), "a copy of slurm/train.sbatch"),
}  # fmt: skip


@dataclass(frozen=True)
class SlurmJob:
    """A job's script and its file."""

    file: Path
    text: str

    def command(self, dependency: str = "") -> list[str]:
        """Returns the sbatch command, which prints the job's number.

        With sbatch's --dependency, such as afterok:17, jobs that can never start are cancelled.
        """
        waits = [f"--dependency={dependency}", "--kill-on-invalid-dep=yes"] if dependency else []
        return ["sbatch", "--parsable", *waits, str(self.file)]

    def submit(self, dependency: str = "") -> str:
        """Writes the script, submits the job and returns its number; InputError if that fails."""
        write_text(self.file, self.text)
        if shutil.which("sbatch") is None:
            file = shlex.quote(str(self.file))
            raise InputError(f"sbatch was not found here: submit on a login node, with sbatch {file}")
        done = subprocess.run(self.command(dependency), capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"sbatch refused {self.file}: {' '.join(done.stderr.split())}")
        return done.stdout.strip().partition(";")[0]


@dataclass(frozen=True)
class SlurmRequest:
    """The SLURM options that `superclip submit` and `superclip study --slurm` share, by their names there."""

    device: str
    nodes: int
    gpus_per_node: int  # processes of device "cpu"
    gpu_type: str | None = None  # SLURM's name of the GPUs
    cpus_per_node: int | None = None  # of shared nodes
    sbatch: Mapping[str, str] = field(default_factory=dict)  # further options of sbatch
    setup: Path | None = None  # a bash file that the job sources first

    def keep_setup(self, folder: Path) -> None:
        """Copies the file of --setup into the folder from which the job sources it."""
        if self.setup and self.setup.resolve() != (folder / SETUP).resolve():
            make_folder(folder, "--out")
            shutil.copyfile(self.setup, folder / SETUP)

    def training(
        self, file: Path, name: str, runs: Sequence[Path], command: str = "run", array: str = ""
    ) -> SlurmJob:  # fmt: skip
        """Returns a job that trains or rehearses runs, given as folders with descriptions, or an array of such jobs.

        The folder of the script `file` contains the job's output and the copy of --setup.
        """
        options = self._options(file, name, self.nodes, self.gpus_per_node, "%A_%a" if array else "%j")
        options |= {"cpus-per-task": str(self.cpus_per_node)} if self.cpus_per_node else {"exclusive": "", "mem": "0"}
        options |= {"array": array} if array else {}
        run = '"${runs[${SLURM_ARRAY_TASK_ID:-0}]}"'
        lines = ["runs=(", *(f"    {shlex.quote(str(folder))}" for folder in runs), ")"]
        lines = [*self._setup(file.parent), *lines, f'command=("${{superclip[@]}}" {command} {run})']
        text = (shipped_folder("slurm") / "train.sbatch").read_text()
        for mark, filling in (("options", self._directives(options)), ("command", lines)):
            before, _, rest = text.partition(f"# <{mark}>\n")
            text = "\n".join([before.rstrip("\n"), *filling, rest.partition(f"# </{mark}>\n")[2]])
        return SlurmJob(file, text)

    def command(self, file: Path, name: str, arguments: Sequence[str]) -> SlurmJob:
        """Returns a job that runs `superclip ARGUMENTS` once: on a CPU, with a GPU if the partition has GPUs."""
        options = self._options(file, name, 1, 1, "%j") | {"cpus-per-task": "1", "requeue": "", "open-mode": "append"}
        lines = [
            "#!/bin/bash",
            *self._directives(options),
            *self._setup(file.parent),
            'exec srun --nodes=1 --ntasks=1 --cpus-per-task=1 --export=ALL ${CONTAINER:-} "${superclip[@]}" '
            + shlex.join(arguments),
        ]
        return SlurmJob(file, "\n".join(lines) + "\n")

    def _options(self, file: Path, name: str, nodes: int, gpus: int, number: str) -> dict[str, str]:
        """Returns the common sbatch options of all jobs."""
        # SLURM puts the folder of --chdir before a path that is not absolute, and reads that one's % as well.
        folder = file.parent.absolute() if "%" in str(Path.cwd()) else file.parent
        options = {"job-name": name, "nodes": str(nodes), "time": "24:00:00"}
        options |= {"output": f"{str(folder).replace('%', '%%')}/slurm-{number}.out", "chdir": str(Path.cwd())}
        if self.device == "cuda" and "gres" not in self.sbatch:  # on clusters without --gpus-per-node
            options["gpus-per-node"] = f"{self.gpu_type}:{gpus}" if self.gpu_type else str(gpus)
        return options

    def _directives(self, options: Mapping[str, str]) -> list[str]:
        given = {**options, **self.sbatch}.items()
        return [f"#SBATCH {shlex.quote(f'--{name}={value}' if value else f'--{name}')}" for name, value in given]

    def _setup(self, folder: Path) -> list[str]:
        """Returns the lines that set up the job and find `superclip`; in a container, on its own PATH."""
        setup = shlex.quote(f"{folder}/{SETUP}")
        lines = [f'source {setup} || {{ echo "$0: {SETUP} has failed" >&2 && exit 1; }}'] if self.setup else []
        superclip = f"{shlex.quote(sys.executable)} -m openclip_superclip"
        return [*lines, f"superclip=({superclip})", '[ -z "${CONTAINER:-}" ] || superclip=(superclip)']
