"""What the jobs of a command ask SLURM for: nodes, GPUs, CPUs, a container, and whatever else sbatch takes."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

from ..errors import InputError
from ..files import make_folder, shipped_folder, whole_file, write_text
from .folder import FINISHED, RunFolder
from .plan import Plan, engine_flags, make_plan, with_table
from .recipe import read_recipe
from .run import USUAL, RunSettings
from .stage import check_stage

VARIABLE = "SUPERCLIP_SITE"  # another file; no file where it is empty


FIELDS = {
    "partition": str, "account": str, "qos": str, "time": str, "constraint": str, "gpus_per_node": int,
    "gpu_type": str, "cpus_per_node": int, "container_image": str, "apptainer": str, "mounts": str, "setup": str,
    "stage": str, "sbatch": list,
}  # fmt: skip


def site_file() -> Path | None:
    """Returns the site's file, None where there is none; InputError where the variable names one that is not there."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        if named and not Path(named).is_file():
            raise InputError(f"{VARIABLE} is {named}; expected a file, or nothing")
        return Path(named) if named else None
    path = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "superclip" / "site.yaml"
    return path if path.is_file() else None


def read_site() -> dict:
    """Returns the fields of the site's file, nothing where there is none; InputError for what it cannot hold."""
    path = site_file()
    if path is None:
        return {}
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text()) or {}
    except (YAMLError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a YAML mapping of {', '.join(FIELDS)}")
    for name, value in values.items():
        if name not in FIELDS:
            raise InputError(f"{path}: there is no field '{name}'; a site's fields are {', '.join(FIELDS)}")
        if type(value) is not FIELDS[name]:
            kind = {str: "text, in quotes", int: "a whole number", list: "a list: [mem=400G]"}[FIELDS[name]]
            raise InputError(f"{path}: {name} is {value!r}; expected {kind}")
    if "container_image" in values and "apptainer" in values:
        raise InputError(f"{path}: container_image and apptainer are both there; expected one of them")
    return values


@dataclass(frozen=True)
class Container:
    """An image of pyxis (and enroot), or of Apptainer."""

    image: str
    is_apptainer: bool
    mounts: str = ""  # /data,/scratch:/scratch

    def command(self, paths: Iterable[Path], gpus: bool) -> str:
        """Returns what srun needs before a command: this folder is the container's, and it sees `paths`.

        Folders of paths that neither this one nor the mounts hold are mounted too. Raises InputError for what the
        options of containers cannot hold.
        """
        here = Path.cwd()
        for told in (self.image, self.mounts, str(here)):
            if re.search(r"\s", told):
                raise InputError(f"'{told}' has a space in it: a container's options take none; link it elsewhere")
        seen = [here, *(Path(mount.split(":")[min(1, mount.count(":"))]) for mount in self.mounts.split(",") if mount)]
        more: list[Path] = []
        for path in map(Path.absolute, paths):
            if not any(path.is_relative_to(folder) for folder in [*seen, *more]):
                if re.search(r"[\s,:]", str(path)):
                    raise InputError(f"'{path}' cannot be mounted: expected a path without spaces, commas and colons")
                more.append(path)
        own, given = [str(here), *map(str, more)], [self.mounts] if self.mounts else []
        if self.is_apptainer:
            gpu = " --nv" if gpus else ""
            return f"apptainer exec{gpu} --pwd {here} --bind {','.join([*own, *given])} {self.image}"
        mounts = ",".join([*(f"{path}:{path}" for path in own), *given])
        return f"--container-image={self.image} --container-mounts={mounts} --container-workdir={here}"


def folders_of(values: Iterable[str]) -> list[Path]:
    """Returns the folders that paths and brace patterns of shards lie in; nothing of URLs and pipes."""
    parts = (part for value in values for part in value.split("::"))
    local = (part for part in parts if part.startswith(("/", "./", "../", "~")) or not re.match(r"\w+:", part))
    return [Path(re.split(r"[{*?\[]", part)[0] + "x").parent for part in local if part]


WHOLE_NODES = {"exclusive": "", "mem": "0"}


SETUP = "setup.sh"  # the copy of --setup that a folder keeps


SAID_OTHERWISE = {  # options of sbatch that the scripts rely on, and what says them
    "nodes": "--nodes", "gpus-per-node": "--gpus-per-node", "gpus": "--nodes and --gpus-per-node",
    "cpus-per-task": "--cpus-per-node", "ntasks": "--nodes", "ntasks-per-node": "--gpus-per-node",
    "array": "superclip study --slurm", "chdir": "the folder that you submit from", "wrap": "the command itself",
    "parsable": "the command itself", "job-name": "--out", "output": "--out",
}  # fmt: skip


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


TRAINING, COMMAND = "training_job.sh", "command_job.sh"  # trains runs; runs one `superclip` command


ABOUT = "# Submits again what `superclip submit` has submitted; a run resumes from its last checkpoint."


@dataclass(frozen=True)
class Submission:
    """The options of `superclip submit`, by their names there."""

    recipe: str
    request: SlurmRequest
    set: Mapping[str, str] = field(default_factory=dict)
    out: Path | None = None
    data: str | None = None
    gpu_batch_max: int | None = None
    workers: int | None = None
    engine: str = "torchrun"
    settings: RunSettings = USUAL
    rehearse: bool = False  # train some minutes with `superclip rehearse`

    @cached_property
    def plan(self) -> Plan:
        """The run's plan; InputError where it cannot be trained."""
        request, recipe = self.request, read_recipe(self.recipe, with_table(self.recipe, self.set, self.data))
        plan = make_plan(
            recipe, request.nodes, request.gpus_per_node, self.data, self.gpu_batch_max, self.workers, request.device
        )
        engine_flags(self.engine, plan.command)
        if self.settings.stage:
            check_stage(plan)
        return plan

    @cached_property
    def folder(self) -> RunFolder:
        """The run's folder; InputError where another run is in it, or a finished one."""
        folder = RunFolder(self.out or Path("runs", f"{self.plan.recipe.name}{'-rehearsal' if self.rehearse else ''}"))
        folder.check_queue()
        if not self.settings.accept_changes:
            folder.check_recipe(self.plan.recipe)
        if folder.state().get("state") == FINISHED:
            raise InputError(f"{folder.path} is finished: give --out another folder to train it again")
        return folder

    @property
    def script(self) -> Path:
        """Where the sbatch command is kept."""
        return self.folder.path / "job.sh"

    @property
    def job(self) -> SlurmJob:
        path = self.folder.path
        arguments = run_arguments(self.data, self.gpu_batch_max, self.workers, self.settings, self.engine)
        arguments += [part for key, value in self.set.items() for part in ("--set", f"{key}={value}")]
        runs = ["--rehearse", "--runs"] if self.rehearse else ["--runs"]
        paths = [*paths_of(self.plan), *self.settings.folders()]
        return self.request.training(path.name, path, [runs, [str(path)]], arguments, paths)

    def shell(self) -> str:
        """Returns a script of the sbatch command."""
        return f"#!/bin/bash\n{ABOUT}\n{self.job.shell()}\n"

    def submit(self) -> str:
        """Writes recipe and script, submits the job and returns its number."""
        self.folder.write_recipe(self.plan.recipe)
        self.request.keep_setup(self.folder.path)
        write_text(self.script, self.shell())
        number = self.job.submit(self.script)
        self.folder.note_submission(number)
        return number


def paths_of(plan: Plan) -> list[Path]:
    """Returns the folders of the files that a run reads: shards, and whatever its model and flags name."""
    recipe = plan.recipe
    named = [recipe.model.removeprefix("local-dir:"), *recipe.flags.values(), *(recipe.superclip or {}).values()]
    files = [value for value in named if isinstance(value, str) and value.startswith(("/", "../"))]
    return folders_of([plan.data, *files])


def run_arguments(
    data: str | None, gpu_batch_max: int | None, workers: int | None, settings: RunSettings, engine: str = "torchrun"
) -> list[str]:
    """Returns the options of `superclip run` that are given."""
    options = {
        "--data": data, "--gpu-batch-max": gpu_batch_max, "--workers": workers,
        "--engine": None if engine == "torchrun" else engine,
    }  # fmt: skip
    given = [part for name, value in options.items() if value is not None for part in (name, str(value))]
    return [*given, *settings.arguments()]
