"""What the jobs of a command ask SLURM for: nodes, GPUs, CPUs, a container, and whatever else sbatch takes."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from .slurm_job import COMMAND, TRAINING, SlurmJob

WHOLE_NODES = {"exclusive": "", "mem": "0"}


@dataclass(frozen=True)
class SlurmRequest:
    """The options of SLURM that `superclip submit` and `superclip study --slurm` share, by their names there."""

    device: str = "cuda"
    nodes: int = 1
    gpus_per_node: int = 8  # processes of device "cpu"
    cpus_per_node: int | None = None  # of shared nodes
    sbatch: Mapping[str, str] = field(default_factory=dict)  # more of its options
    container_image: str | None = None  # of pyxis
    apptainer: str | None = None
    mounts: str | None = None

    def training(
        self, name: str, folder: Path, runs: Sequence[Sequence[str]], arguments: Sequence[str], array: str = ""
    ) -> SlurmJob:
        """Returns a job that trains runs, folders that hold their recipes.

        Args:
            folder: of what it prints.
            runs: the lines of the script's arguments that name them.
            arguments: of every `superclip run`, after recipe and folder.
            array: sbatch's, a task a run, in a study.
        """
        options = {"job-name": name, "nodes": str(self.nodes)}
        options["output"] = f"{folder}/slurm-{'%A_%a' if array else '%j'}.out"
        options |= self._where() | self._gpus(self.gpus_per_node)
        options |= {"cpus-per-task": str(self.cpus_per_node)} if self.cpus_per_node else WHOLE_NODES
        options |= {"array": array} if array else {}
        on_cpus = ["--device", "cpu", "--nproc", str(self.gpus_per_node)] if self.device == "cpu" else []
        lines = [*self._surroundings(), *runs, ["--", *arguments, *on_cpus]]
        return SlurmJob(TRAINING, options | dict(self.sbatch), lines)

    def command(self, name: str, folder: Path, arguments: Sequence[str]) -> SlurmJob:
        """Returns a job that runs `superclip ARGUMENTS` once: on a CPU, beside a GPU where its partition has them."""
        options = {"job-name": name, "nodes": "1", "output": f"{folder}/slurm-%j.out"}
        options |= self._where() | self._gpus(1) | {"cpus-per-task": "1"}
        return SlurmJob(COMMAND, options | dict(self.sbatch), [*self._surroundings(), list(arguments)])

    def _where(self) -> dict[str, str]:
        return {"chdir": str(Path.cwd())}

    def _gpus(self, number: int) -> dict[str, str]:
        asks = self.device == "cuda" and "gres" not in self.sbatch  # where SLURM knows no --gpus-per-node
        return {"gpus-per-node": str(number)} if asks else {}

    def _surroundings(self) -> list[list[str]]:
        """Returns what tells the scripts where `superclip` is."""
        container = self._container()
        return [["--container", container] if container else ["--superclip", _superclip()]]

    def _container(self) -> str:
        """Returns what srun needs before the command, "" where there is no container."""
        here, image = Path.cwd(), self.container_image or self.apptainer
        for path in (image, self.mounts, str(here) if image else ""):
            if path and " " in path:
                raise InputError(f"'{path}' has a space in it: a container's options take none; link it elsewhere")
        if self.container_image:
            mounts = ",".join([f"{here}:{here}", *([self.mounts] if self.mounts else [])])
            return f"--container-image={self.container_image} --container-mounts={mounts} --container-workdir={here}"
        if self.apptainer:
            mounts = f" --bind {self.mounts}" if self.mounts else ""
            return f"apptainer exec{' --nv' if self.device == 'cuda' else ''}{mounts} {self.apptainer}"
        return ""


def _superclip() -> str:
    return str(Path(sys.executable).with_name("superclip"))
