"""SLURM: the node of this process, the queue, and job scripts."""

import errno
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..files import make_folder, shipped_folder, write_text
from .recipe import read_yaml
from .run import Run

FIRST_SPECIAL_STEP = 0xFFFFFFF0  # SLURM's numbers of the batch script's and salloc's own steps


@dataclass(frozen=True)
class Placement:
    """One machine outside SLURM, or one node of a step of a job."""

    num_nodes: int = 1
    node: int = 0
    job: str | None = None  # SLURM's number, different for each task of an array
    restarts: int = 0  # how often SLURM has requeued the job
    step: str | None = None
    master_addr: str = "127.0.0.1"
    master_port: int = 0
    gpus: int | None = None  # of this node, if set by SLURM

    def name_of_start(self, num_earlier: int) -> str:
        """Returns the name of this start of a run, equal on all nodes, given the number of earlier starts.

        Earlier starts are only counted on a single node, where a shell can start the run again within the same step.
        """
        return f"local-{num_earlier}" if self.num_nodes == 1 else f"{self.job}.{self.step}-{self.restarts}"

    def port_is_taken(self) -> bool:
        """Returns whether the rendezvous port is already in use on this machine, the run's first."""
        if self.num_nodes == 1:  # which uses a free port
            return False
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # like torch: an earlier run may just have ended
            try:
                free.bind(("", self.master_port))
            except OSError as error:
                return error.errno == errno.EADDRINUSE
        return False

    def num_processes(self, device: str) -> int:
        """Returns the number of training processes here: one per GPU, or one on CPUs; InputError without a GPU."""
        if device == "cpu":
            return 1
        gpus = self.gpus
        if gpus is None:
            import torch

            gpus = torch.cuda.device_count()
        if gpus == 0:
            raise InputError("no GPU was found here; expected one, or --device cpu with --nproc N")
        return gpus


def find_placement(environment: Mapping[str, str] = os.environ) -> Placement:
    """Returns the node of this process; InputError if srun does not start one process per node."""
    job = environment.get("SLURM_JOB_ID")
    if job is None:
        return Placement()
    restarts = int(environment.get("SLURM_RESTART_COUNT", 0))
    gpus = int(environment["SLURM_GPUS_ON_NODE"]) if "SLURM_GPUS_ON_NODE" in environment else None
    step = environment.get("SLURM_STEP_ID")
    if step is None or int(step) >= FIRST_SPECIAL_STEP:
        num_nodes = int(environment.get("SLURM_JOB_NUM_NODES", 1))
        if num_nodes > 1:
            raise InputError(
                f"job {job} has {num_nodes} nodes, and this process would use one of them: start it with "
                "srun --ntasks-per-node=1, as slurm/train.sbatch does"
            )
        return Placement(job=job, restarts=restarts, gpus=gpus)
    num_nodes, num_tasks = int(environment["SLURM_STEP_NUM_NODES"]), int(environment["SLURM_STEP_NUM_TASKS"])
    if num_tasks != num_nodes:
        raise InputError(
            f"srun starts {num_tasks} processes on {num_nodes} nodes; expected one per node (--ntasks-per-node=1), "
            "which starts a process for each GPU itself"
        )
    if num_nodes > 1 and "MASTER_ADDR" not in environment:
        raise InputError("MASTER_ADDR is not set: expected the first node's name, as slurm/train.sbatch exports it")
    return Placement(
        num_nodes=num_nodes,
        node=int(environment["SLURM_NODEID"]),
        job=job,
        restarts=restarts,
        step=step,
        master_addr=environment.get("MASTER_ADDR", "127.0.0.1"),
        master_port=int(environment.get("MASTER_PORT", 29500)),
        gpus=gpus,
    )


def ask_job(what: str, exclude: str = "", environment: Mapping[str, str] = os.environ) -> None:
    """Sends the job's next state to the job script, if there is one: "started", "restart" or "requeue".

    Args:
        exclude: a host that SLURM should not start the job on again.
    """
    if "SUPERCLIP_NEXT" in environment:
        with open(environment["SUPERCLIP_NEXT"], "a") as file:
            file.write(f"{what}\n" + (f"exclude {exclude}\n" if exclude else ""))


def hosts(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Returns the names of the run's nodes; SLURM's compressed list if a container lacks its commands."""
    nodes = environment.get("SLURM_STEP_NODELIST")
    if nodes is None:
        return [socket.gethostname()]
    try:
        listed = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return [nodes]
    return listed.stdout.split()


class QueuedJob(NamedTuple):
    """A pending or running job, or task of an array."""

    number: str  # SLURM_JOB_ID, another one for each task of an array
    task: str  # ARRAY_TASK with sbatch's number; the number if there is no array
    state: str  # PENDING, RUNNING, …
    reason: str  # why it is pending


def my_jobs() -> dict[str, QueuedJob] | None:
    """Returns this user's jobs by number, and tasks of arrays by ARRAY_TASK too; None if SLURM does not answer."""
    command = ["squeue", "--me", "--array", "--noheader", "--format=%A|%i|%T|%r"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    jobs = [QueuedJob(*line.strip().split("|", 3)) for line in listed.splitlines() if line.strip()]
    return {job.number: job for job in jobs} | {job.task: job for job in jobs}


NAMED = ("partition", "account", "qos", "time", "constraint")  # options of sbatch that are passed on unchanged
SITE_FIELDS = {
    **dict.fromkeys(NAMED, str), "gpus_per_node": int, "gpu_type": str, "cpus_per_node": int, "container_image": str,
    "apptainer": str, "mounts": str, "setup": str, "stage": str, "sbatch": list,
}  # fmt: skip
REQUEST_OPTIONS = ("nodes", *(name for name in SITE_FIELDS if name != "stage"))  # of the command line
SETUP = "setup.sh"  # the copy of --setup that a folder keeps
OTHER_OPTIONS = {  # options of sbatch that the scripts set, and the options that set them
    "nodes": "--nodes", "gpus-per-node": "--gpus-per-node", "gpus": "--nodes and --gpus-per-node",
    "cpus-per-task": "--cpus-per-node", "ntasks": "--nodes", "ntasks-per-node": "--gpus-per-node",
    "array": "superclip study --slurm", "chdir": "the folder that you submit from", "wrap": "the command itself",
    "parsable": "the command itself", "job-name": "--out", "output": "--out",
}  # fmt: skip


def read_site() -> dict:
    """Returns the fields of the site's file, {} if there is none; InputError for an invalid file or field.

    SUPERCLIP_SITE is the path of another file; empty for no file.
    """
    named = os.environ.get("SUPERCLIP_SITE")
    path = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "superclip" / "site.yaml"
    if named and not Path(named).is_file():
        raise InputError(f"SUPERCLIP_SITE is {named}; expected a file, or nothing")
    path = path if named is None else Path(named)
    if named == "" or not path.is_file():
        return {}
    values = read_yaml(path, f"the fields {', '.join(SITE_FIELDS)}", empty=True)
    for name, value in values.items():
        if name not in SITE_FIELDS:
            raise InputError(f"{path}: there is no field '{name}'; a site's fields are {', '.join(SITE_FIELDS)}")
        if type(value) is not SITE_FIELDS[name]:
            kind = {str: "text, in quotes", int: "a whole number", list: "a list: [mem=400G]"}[SITE_FIELDS[name]]
            raise InputError(f"{path}: {name} is {value!r}; expected {kind}")
    if "container_image" in values and "apptainer" in values:
        raise InputError(f"{path}: container_image and apptainer are both there; expected one of them")
    return values


@dataclass(frozen=True)
class SlurmJob:
    """A job's script and its file."""

    file: Path
    text: str

    def command(self, dependency: str = "") -> list[str]:
        """Returns the sbatch command, which prints the job's number.

        Args:
            dependency: sbatch's --dependency, such as afterok:17; jobs that can never start are cancelled.
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
    """The options of SLURM that `superclip submit` and `superclip study --slurm` share, by their names there."""

    device: str = "cuda"
    nodes: int = 1
    gpus_per_node: int = 8  # processes of device "cpu"
    cpus_per_node: int | None = None  # of shared nodes
    sbatch: Mapping[str, str] = field(default_factory=dict)  # more of its options
    container_image: str | None = None  # of pyxis
    apptainer: str | None = None
    mounts: str | None = None  # /data,/scratch:/scratch
    setup: str = ""  # a bash file that the job sources first
    gpu_type: str | None = None  # SLURM's name of the GPUs

    @staticmethod
    def of(given: Mapping, device: str, gpus_per_node: int) -> "SlurmRequest":
        """Returns the request of the `given` options, with the site's file for the others.

        Raises InputError for contradictory options.
        """
        site = read_site()
        if "container_image" in given or "apptainer" in given:
            site = {name: value for name, value in site.items() if name not in ("container_image", "apptainer")}
        values = {"gpus_per_node": gpus_per_node, **site, **given}
        sbatch = {name: value for name in NAMED if (value := values.pop(name, None))}
        for option in [*site.get("sbatch", []), *given.get("sbatch", [])]:
            name, _, value = str(option).removeprefix("--").partition("=")
            if not name.strip("-"):
                raise InputError(f"--sbatch is '{option}'; expected NAME=VALUE, such as mem=400G")
            if name in OTHER_OPTIONS:
                raise InputError(f"--sbatch {name}={value}: expected {OTHER_OPTIONS[name]} to say it")
            sbatch[name] = value
        if given.get("mounts") and not (values.get("container_image") or values.get("apptainer")):
            raise InputError(f"--mounts is {given['mounts']}; expected --container-image or --apptainer beside it")
        gpus = _gpus_of(sbatch.get("gres", ""))
        if device == "cuda" and gpus not in (None, values["gpus_per_node"]):
            raise InputError(
                f"--sbatch gres={sbatch['gres']} asks for {gpus} GPUs, and --gpus-per-node is "
                f"{values['gpus_per_node']}; expected the same number"
            )
        setup = os.path.expanduser(values.pop("setup", ""))
        if setup and not os.path.isfile(setup):
            raise InputError(f"--setup is {setup}; expected a file of bash: module loads, variables")
        values.pop("stage", None)  # which is in the run's settings
        return SlurmRequest(**{**values, "device": device, "sbatch": sbatch, "setup": setup})

    def keep_setup(self, folder: Path) -> None:
        """Copies the file of --setup into the folder from which the job sources it."""
        if self.setup:
            make_folder(folder, "--out")
            shutil.copyfile(self.setup, folder / SETUP)

    def training(
        self, file: Path, name: str, runs: Sequence[Path], paths: Iterable[Path], command: str = "run",
        array: str = "",
    ) -> SlurmJob:  # fmt: skip
        """Returns a job that trains runs, given as folders with descriptions.

        Args:
            file: the script; its folder contains the job's output and the copy of --setup.
            command: run or rehearse.
            paths: files to read and write, which are mounted in a container.
            array: sbatch's, one task per run.
        """
        options = self._options(file, name, self.nodes, self.gpus_per_node, "%A_%a" if array else "%j")
        options |= {"cpus-per-task": str(self.cpus_per_node)} if self.cpus_per_node else {"exclusive": "", "mem": "0"}
        options |= {"array": array} if array else {}
        run = '"${runs[${SLURM_ARRAY_TASK_ID:-0}]}"'
        lines = ["runs=(", *(f"    {shlex.quote(str(folder))}" for folder in runs), ")"]
        lines = [*self._surroundings(file.parent, paths), *lines, f'command=("$superclip" {command} {run})']
        text = (shipped_folder("slurm") / "train.sbatch").read_text()
        for mark, filling in (("options", self._directives(options)), ("command", lines)):
            before, _, rest = text.partition(f"# <{mark}>\n")
            text = "\n".join([before.rstrip("\n"), *filling, rest.partition(f"# </{mark}>\n")[2]])
        return SlurmJob(file, text)

    def command(self, file: Path, name: str, arguments: Sequence[str], paths: Iterable[Path]) -> SlurmJob:
        """Returns a job that runs `superclip ARGUMENTS` once: on a CPU, with a GPU if the partition has GPUs."""
        options = self._options(file, name, 1, 1, "%j") | {"cpus-per-task": "1", "requeue": "", "open-mode": "append"}
        lines = [
            "#!/bin/bash",
            *self._directives(options),
            *self._surroundings(file.parent, paths),
            'exec srun --nodes=1 --ntasks=1 --cpus-per-task=1 --export=ALL "${container[@]}" "$superclip" '
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
        arguments = [
            f"--{name}={value}" if value else f"--{name}" for name, value in {**options, **self.sbatch}.items()
        ]
        return [f"#SBATCH {shlex.quote(argument)}" for argument in arguments]

    def _surroundings(self, folder: Path, paths: Iterable[Path]) -> list[str]:
        """Returns the lines that set up the job, its container and the place of `superclip`."""
        setup = shlex.quote(f"{folder}/{SETUP}")
        lines = [f'source {setup} || {{ echo "$0: {SETUP} has failed" >&2 && exit 1; }}'] if self.setup else []
        if self.container_image or self.apptainer:
            return [*lines, f"container=({self._container([folder, *paths])})", "superclip=superclip"]
        superclip = shlex.quote(str(Path(sys.executable).with_name("superclip")))
        return [*lines, "container=()", f"superclip={superclip}"]

    def _container(self, paths: Iterable[Path]) -> str:
        """Returns srun's container options: the current folder as working directory, with `paths` mounted.

        Folders of paths outside the current folder and the mounts are mounted too. Raises InputError for paths that the
        options of containers cannot express.
        """
        here, given = Path.cwd(), self.mounts.split(",") if self.mounts else []
        seen = [here, *(Path(mount.split(":")[:2][-1]) for mount in given)]
        added = [here]
        for path in map(Path.absolute, paths):
            if not any(path.is_relative_to(folder) for folder in [*seen, *added]):
                added.append(path)
        image = self.container_image or self.apptainer
        for text in (image, *given):
            if re.search(r"\s", text):
                raise InputError(f"'{text}' has a space in it: a container's options take none; link it elsewhere")
        for path in added:
            if re.search(r"[\s,:]", str(path)):
                raise InputError(f"'{path}' cannot be mounted: expected a path without spaces, commas and colons")
        if self.apptainer:
            gpu = " --nv" if self.device == "cuda" else ""
            return f"apptainer exec{gpu} --pwd {here} --bind {','.join([*map(str, added), *given])} {image}"
        mounts = ",".join([*(f"{path}:{path}" for path in added), *given])
        return f"--container-image={image} --container-mounts={mounts} --container-workdir={here}"


def folders_of(values: Iterable[str]) -> list[Path]:
    """Returns the folders of paths and brace patterns of shards; nothing of URLs and pipes."""
    parts = (part for value in values for part in value.split("::"))
    local = (part for part in parts if part.startswith(("/", "./", "../", "~")) or not re.match(r"\w+:", part))
    return [Path(re.split(r"[{*?\[]", part)[0] + "x").parent for part in local if part]


def _gpus_of(gres: str) -> int | None:
    """Returns the number of GPUs in --gres, such as gpu:a100:4; None if there are none."""
    asked = [part.split("(")[0].split(":") for part in gres.split(",") if re.match(r"gpu(:|$)", part)]
    return sum(int(parts[-1]) if parts[-1].isdigit() else 1 for parts in asked) if asked else None


def paths_of(run: Run) -> list[Path]:
    """Returns the folders of the files that a run reads: shards, and files of its model and flags."""
    recipe = run.recipe
    named = [recipe.model.removeprefix("local-dir:"), *recipe.flags.values(), *(recipe.superclip or {}).values()]
    files = [value for value in named if isinstance(value, str) and value.startswith(("/", "../"))]
    stage = run.settings.stage
    stages = [Path(stage)] if stage and "$" not in stage else []  # others are known once a job runs
    return [*folders_of([run.data, *files]), *stages]
