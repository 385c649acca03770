"""What `superclip submit` is asked for: a recipe, as one job of SLURM."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..atomic_files import write_text
from ..errors import InputError
from ..planning.plan import Plan, make_plan
from ..planning.recipe_file import read_recipe
from ..planning.table_data import with_table
from .container import folders_of
from .run_folder import RunFolder
from .run_settings import USUAL, RunSettings
from .run_state import FINISHED
from .slurm_job import SlurmJob
from .slurm_request import SlurmRequest
from .staging import check_stage
from .training_engine import engine_flags

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
