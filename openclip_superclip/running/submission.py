"""What `superclip submit` is asked for: a recipe, or the recipes of a study, as one job of SLURM."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..atomic_files import whole_file
from ..errors import InputError
from ..planning.batch_size_study import study_name, study_recipes
from ..planning.plan import Plan, make_plan
from ..planning.recipe_file import read_recipe
from .run_folder import FINISHED, RunFolder
from .slurm_job import SlurmJob
from .training_engine import engine_flags


@dataclass(frozen=True)
class Submission:
    """The options of `superclip submit`, by their names there."""

    recipe: str
    set: Mapping[str, str]
    out: Path | None = None  # the folder of the run, or of the study's
    data: str | None = None
    gpu_batch_max: int | None = None
    workers: int | None = None
    device: str = "cuda"
    engine: str = "torchrun"
    nodes: int = 1
    gpus_per_node: int = 8
    cpus_per_node: int | None = None  # of shared nodes
    array: Sequence[str] = ()  # batch sizes of a study
    methods: Sequence[str] = ()
    max_running: int | None = None  # tasks of an array at a time
    sbatch: Mapping[str, str] = field(default_factory=dict)  # more of its options
    container_image: str | None = None  # of pyxis
    apptainer: str | None = None
    mounts: str | None = None

    @cached_property
    def plans(self) -> dict[str, Plan]:
        """The plan of every run by its folder; InputError where one cannot be trained."""
        return dict(
            map(self._plan, study_recipes(self.recipe, self.array, self.methods) if self.array else [self.recipe])
        )

    def check_data(self) -> None:
        """Raises InputError where the shards of a run would not let it start."""
        for plan in self.plans.values():
            plan.check_data()

    def check_shards(self) -> None:
        """Raises InputError where the patterns of shards are too few for a run; warns of uneven shares."""
        for run, plan in self.plans.items():
            for warning in plan.check_shards():
                print(f"superclip submit: {run}: {warning}", file=sys.stderr)

    @property
    def script(self) -> Path:
        """Where the sbatch command is kept."""
        return self._folder / f"{study_name(self.recipe)}.job.sh" if self.array else self._folder / "job.sh"

    @property
    def job(self) -> SlurmJob:
        container = self._container()
        superclip = "" if container else str(Path(sys.executable).with_name("superclip"))
        return SlurmJob(list(self.plans), self._sbatch_options(), self._run_arguments(), superclip, container)

    def submit(self) -> str:
        """Writes recipes and script, submits the job and returns its number."""
        for run, plan in self.plans.items():
            RunFolder(Path(run)).write_recipe(plan.recipe)
        with whole_file(self.script) as file:
            file.write(self.job.script().encode())
        return self.job.submit(self.script)

    @property
    def _folder(self) -> Path:
        return self.out or Path("runs") if self.array else Path(next(iter(self.plans)))

    def _plan(self, name: str) -> tuple[str, Plan]:
        recipe = read_recipe(name, self.set)
        plan = make_plan(
            recipe, self.nodes, self.gpus_per_node, self.data, self.gpu_batch_max, self.workers, self.device
        )
        engine_flags(self.engine, plan.command)
        run = (self.out or Path("runs")) / recipe.name if self.array else self.out or Path("runs", recipe.name)
        RunFolder(run).check_recipe(recipe)
        if RunFolder(run).state().get("state") == FINISHED:
            raise InputError(f"{run} is finished: give --out another folder to train it again")
        return str(run), plan

    def _sbatch_options(self) -> dict[str, str]:
        """Returns what slurm/training_job.sh does not ask for itself."""
        options = {
            "job-name": study_name(self.recipe) if self.array else self._folder.name,
            "nodes": str(self.nodes),
            "output": f"{self._folder}/slurm-{'%A_%a' if self.array else '%j'}.out",
            "chdir": str(Path.cwd()),
        }
        if self.device == "cuda" and "gres" not in self.sbatch:  # where SLURM knows no --gpus-per-node
            options["gpus-per-node"] = str(self.gpus_per_node)
        whole_nodes = {"exclusive": "", "mem": "0"}
        options |= {"cpus-per-task": str(self.cpus_per_node)} if self.cpus_per_node else whole_nodes
        if self.array:
            throttle = f"%{self.max_running}" if self.max_running else ""
            options["array"] = f"0-{len(self.plans) - 1}{throttle}"
        return options | dict(self.sbatch)

    def _run_arguments(self) -> list[str]:
        options = {
            "--data": self.data,
            "--gpu-batch-max": self.gpu_batch_max,
            "--workers": self.workers,
            "--engine": None if self.engine == "torchrun" else self.engine,
            **({"--device": "cpu", "--nproc": self.gpus_per_node} if self.device == "cpu" else {}),
        }
        arguments = [part for name, value in options.items() if value is not None for part in (name, str(value))]
        return arguments + [part for key, value in self.set.items() for part in ("--set", f"{key}={value}")]

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
