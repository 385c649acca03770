"""What the jobs of a command ask SLURM for: nodes, GPUs, CPUs, a container, and whatever else sbatch takes."""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..atomic_files import make_folder, whole_file
from ..errors import InputError
from .container import Container
from .slurm_job import COMMAND, TRAINING, SlurmJob

WHOLE_NODES = {"exclusive": "", "mem": "0"}
SETUP = "setup.sh"  # the copy of --setup that a folder keeps
SAID_OTHERWISE = {  # options of sbatch that the scripts rely on, and what says them
    "nodes": "--nodes", "gpus-per-node": "--gpus-per-node", "gpus": "--nodes and --gpus-per-node",
    "cpus-per-task": "--cpus-per-node", "ntasks": "--nodes", "ntasks-per-node": "--gpus-per-node",
    "array": "superclip study --slurm", "chdir": "the folder that you submit from", "wrap": "the command itself",
    "parsable": "the command itself", "job-name": "--out", "output": "--out",
}  # fmt: skip


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
    setup: Path | None = None  # a file of bash, which the job reads first
    gpu_type: str | None = None  # SLURM's name of the GPUs

    def __post_init__(self):
        """Raises InputError for options that contradict each other."""
        for name, value in self.sbatch.items():
            if name in SAID_OTHERWISE:
                raise InputError(f"--sbatch {name}={value}: expected {SAID_OTHERWISE[name]} to say it")
        gpus = _gpus_of(self.sbatch.get("gres", ""))
        if self.device == "cuda" and gpus not in (None, self.gpus_per_node):
            raise InputError(
                f"--sbatch gres={self.sbatch['gres']} asks for {gpus} GPUs, and --gpus-per-node is "
                f"{self.gpus_per_node}; expected the same number"
            )
        if self.setup and not self.setup.is_file():
            raise InputError(f"--setup is {self.setup}; expected a file of bash: module loads, variables")

    def keep_setup(self, folder: Path) -> None:
        """Copies the file of --setup into the folder, where the job reads it."""
        if self.setup:
            make_folder(folder, "--out")
            with whole_file(folder / SETUP) as file:
                file.write(self.setup.read_bytes())

    def training(
        self, name: str, folder: Path, runs: Sequence[Sequence[str]], arguments: Sequence[str],
        paths: Iterable[Path], array: str = "",
    ) -> SlurmJob:  # fmt: skip
        """Returns a job that trains runs, folders that hold their recipes.

        Args:
            folder: of what it prints, and of the copy of --setup.
            runs: the lines of the script's arguments that name them.
            arguments: of every `superclip run`, after recipe and folder.
            paths: what it reads and writes, which a container must see.
            array: sbatch's, a task a run, in a study.
        """
        options = {"job-name": name, "nodes": str(self.nodes)}
        options["output"] = _output(folder, "%A_%a" if array else "%j")
        options |= {"chdir": str(Path.cwd())} | self._gpus(self.gpus_per_node)
        options |= {"cpus-per-task": str(self.cpus_per_node)} if self.cpus_per_node else WHOLE_NODES
        options |= {"array": array} if array else {}
        on_cpus = ["--device", "cpu", "--nproc", str(self.gpus_per_node)] if self.device == "cpu" else []
        lines = [*self._surroundings(folder, paths), *runs, ["--", *arguments, *on_cpus]]
        return SlurmJob(TRAINING, options | dict(self.sbatch), lines)

    def command(self, name: str, folder: Path, arguments: Sequence[str], paths: Iterable[Path]) -> SlurmJob:
        """Returns a job that runs `superclip ARGUMENTS` once: on a CPU, beside a GPU where its partition has them."""
        options = {"job-name": name, "nodes": "1", "output": _output(folder, "%j")}
        options |= {"chdir": str(Path.cwd())} | self._gpus(1) | {"cpus-per-task": "1"}
        return SlurmJob(COMMAND, options | dict(self.sbatch), [*self._surroundings(folder, paths), list(arguments)])

    def _gpus(self, number: int) -> dict[str, str]:
        asks = self.device == "cuda" and "gres" not in self.sbatch  # where SLURM knows no --gpus-per-node
        return {"gpus-per-node": f"{self.gpu_type}:{number}" if self.gpu_type else str(number)} if asks else {}

    def _surroundings(self, folder: Path, paths: Iterable[Path]) -> list[list[str]]:
        """Returns what tells the scripts what comes before `superclip`, and where that is."""
        setup = [["--setup", f"{folder}/{SETUP}"]] if self.setup else []
        image = self.container_image or self.apptainer
        if not image:
            return [*setup, ["--superclip", str(Path(sys.executable).with_name("superclip"))]]
        container = Container(image, is_apptainer=bool(self.apptainer), mounts=self.mounts or "")
        return [*setup, ["--container", container.command([folder, *paths], gpus=self.device == "cuda")]]


def _output(folder: Path, number: str) -> str:
    """Returns sbatch's --output, in which a % of the folder's own is doubled.

    SLURM puts the folder of --chdir before a path that is not absolute, and reads that one's % as well.
    """
    folder = folder.absolute() if "%" in str(Path.cwd()) else folder
    return f"{str(folder).replace('%', '%%')}/slurm-{number}.out"


def _gpus_of(gres: str) -> int | None:
    """Returns the number of GPUs that --gres asks for, gpu:a100:4 say; None where it asks for none."""
    asked = [part.split("(")[0].split(":") for part in gres.split(",") if re.match(r"gpu(:|$)", part)]
    return sum(int(parts[-1]) if parts[-1].isdigit() else 1 for parts in asked) if asked else None
