"""Options of recipes, runs and their SLURM jobs, and the runs that they describe."""

import dataclasses
import json
import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..checkpoints.trainer_files import RECORD
from ..errors import InputError, Parser, at_least, to_stdout
from ..plans.cost import estimate_cost
from ..plans.plan import make_run, settings_of_table
from ..plans.plan_text import plan_text
from ..plans.recipe import COLUMN_FLAGS, FIELDS, WORDS
from ..plans.recipe_files import read_recipe
from ..plans.run import DEFAULTS, Run, Settings
from ..runs.folder import RunFolder
from ..runs.slurm import Placement, SlurmRequest, minutes_of, processes_here
from .shared_options import add_columns, add_count, add_folder, add_switch, from_options

RUN_SETTINGS = ("unreadable_max", "stall_minutes", "accept_changes")
# options of sbatch that are passed on unchanged
NAMED = ("partition", "account", "qos", "time", "constraint")
# options of sbatch that the scripts set
OURS = (
    "nodes",
    "gpus-per-node",
    "gpus",
    "cpus-per-task",
    "ntasks",
    "ntasks-per-node",
    "array",
    "job-name",
    "output",
    "chdir",
    "signal",
    "requeue",
    "no-requeue",
    "open-mode",
)
GPUS_PER_NODE = 8  # by default
NO_TIME = ("UNLIMITED", "INFINITE", "-1")  # of sbatch's --time
# options that may differ each time a run is started
OF_A_START = {"recipe", "nproc", "dry_run", "rehearse", "steps", "accept_changes"}


def add_device(parser: Parser, default: str | None = None) -> None:
    """Adds --device for training, by default on what `device_here` returns."""
    help = f"device (default: {default or 'cuda if there is a GPU'})"
    parser.option("--device", help, choices=("cuda", "cpu"), default=default)


def device_here() -> str:
    """Returns the default of --device: the GPU if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def add_recipe_options(parser: Parser, *, here: bool) -> None:
    """Adds the options that turn a recipe into a plan, for this machine (`here`) or for machines
    with GPUs."""
    parser.option("recipe", "a file, or a name listed by `superclip plan`", metavar="RECIPE")
    add_plan_options(parser, here=here)


def add_plan_options(parser: Parser, *, here: bool) -> None:
    """Adds the options of a plan, without its recipe."""
    add_data_options(parser, "the recipe's")
    add_split_options(parser)
    if here:
        add_device(parser)
        add_count(parser, "--nproc", "processes (default: one per GPU; one on a CPU)")
    else:
        add_device(parser, "cuda")


def planned_run(
    options: Namespace, nodes: int, gpus_per_node: int, device: str, settings: Settings = DEFAULTS
) -> Run:
    """Returns the run of the options that `add_recipe_options` adds, on given machines."""
    set_ = all_settings(options)
    table_settings = settings_of_table(options.recipe, set_, options.data)
    return make_run(
        read_recipe(options.recipe, set_ | table_settings),
        nodes,
        gpus_per_node,
        data=options.data,
        gpu_batch_max=options.gpu_batch_max,
        workers=options.workers,
        device=device,
        settings=settings,
    )


def add_data_options(parser: Parser, default: str) -> None:
    """Adds options that override the data and the fields of a recipe."""
    parser.recipe_fields = FIELDS.keys() - {*WORDS, "flags", "superclip"}
    parser.option(
        "--data",
        "brace pattern of shards to train on, in quotes, or a .csv of images and captions "
        f"(default: {default})",
        metavar="DATA",
    )
    add_columns(parser, "the recipe's, else from the header")
    parser.option(
        "--set",
        "replace the value of a recipe's field",
        action="append",
        default=[],
        metavar="KEY=VALUE",
    )


def add_split_options(parser: ArgumentParser) -> None:
    """Adds options on splitting and loading batches."""
    add_count(
        parser, "--gpu-batch-max", "largest batch size per GPU; larger batches are accumulated"
    )
    add_count(parser, "--workers", "data-loading processes per GPU")


def add_run_options(parser: Parser, *, here: bool) -> None:
    """Adds the common options of `superclip run` and `superclip submit`."""
    add_recipe_options(parser, here=here)
    add_folder(
        parser,
        "--out",
        "folder of the run (default: runs/NAME, of a rehearsal runs/NAME-rehearsal)",
    )
    add_settings(parser, "engine", *RUN_SETTINGS)
    add_switch(
        parser, "--rehearse", "measure speed and memory on the run's own machines, in a few minutes"
    )
    add_dry_run(parser)


def add_dry_run(parser: ArgumentParser) -> None:
    """Adds --dry-run."""
    add_switch(parser, "--dry-run", "print the plan; read no data and write nothing")


def print_plan(run: Run) -> None:
    """Prints the plan of --dry-run."""
    run.warnings.extend(run.check_shards())
    to_stdout(plan_text(run, estimate_cost(run)))


def add_settings(parser: ArgumentParser, *names: str) -> None:
    """Adds options that do not affect the trained model, by their names in Settings."""
    for name in names:
        setting = Settings.__dataclass_fields__[name]
        parser.add_argument(flag_of(name), default=setting.default, **setting.metadata)


def run_settings(options: Namespace, without_runs: str = "") -> Settings:
    """Returns the settings of the options; InputError for an invalid one, or any beside a flag
    that trains no run."""
    for name in RUN_SETTINGS if without_runs else ():
        if getattr(options, name) != getattr(DEFAULTS, name):
            raise InputError(
                f"{flag_of(name)} has no effect with {without_runs}: leave one of them out"
            )
    return from_options(Settings, options)


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def opened_run(
    options: Namespace, parser: ArgumentParser, placement: Placement
) -> tuple[Run, RunFolder]:
    """Returns the run of a recipe or of a run's folder on the current machines, and its folder."""
    folder = Path(options.recipe)
    if Run.is_in(folder):
        return _run_of_folder(folder, options, parser, placement), RunFolder(folder)
    # a job's GPU may have failed
    device = options.device or (placement.job and "cuda") or device_here()
    num_processes = options.nproc or processes_here(placement, device)
    settings = run_settings(options, "--rehearse" if options.rehearse else "")
    run = planned_run(options, placement.num_nodes, num_processes, device, settings)
    return run, folder_of_run(options, run)


def folder_of_run(options: Namespace, run: Run) -> RunFolder:
    """Returns the folder of --out, or the default one."""
    suffix = "-rehearsal" if options.rehearse else ""
    return RunFolder(options.out or Path("runs", f"{run.recipe.name}{suffix}"))


def _run_of_folder(
    folder: Path, options: Namespace, parser: ArgumentParser, placement: Placement
) -> Run:
    """Returns the run that a folder describes, on the current machines; InputError for an option
    that only a recipe takes."""
    run = Run.open(folder)
    accepted = OF_A_START
    if streams := run.streams():
        given = ["--data", options.data] if options.data else []
        for setting in options.set:
            given += ["--set", setting.replace("{seed}", str(run.recipe.seed))]
        if given != streams:
            raise InputError(
                f"{folder / RECORD} contains data that a shell would fetch: if you trust it, add "
                f"{shlex.join(streams)}"
            )
        accepted = OF_A_START | {"data", "set"}
    for name, value in vars(options).items():
        if name not in accepted and value != parser.get_default(name):
            flag = flag_of(name)
            raise InputError(
                f"{flag}: the options of the run {folder} are in its run.json; leave {flag} out"
            )
    if options.accept_changes:
        settings = dataclasses.replace(run.settings, accept_changes=True)
        run = dataclasses.replace(run, settings=settings)
    here = run.gpus_per_node if run.device == "cpu" else processes_here(placement, run.device)
    return on_machines(run, placement.num_nodes, options.nproc or here)


def on_machines(run: Run, nodes: int, gpus_per_node: int) -> Run:
    """Returns the run on a different number of nodes or GPUs."""
    if (run.nodes, run.gpus_per_node) == (nodes, gpus_per_node):
        return run
    return make_run(
        run.recipe,
        nodes,
        gpus_per_node,
        run.data,
        run.gpu_batch_max,
        run.workers,
        run.device,
        run.settings,
    )


def all_settings(options: Namespace) -> dict[str, str]:
    """Returns the values of --set, including those of a table's options."""
    settings = {}
    for pair in options.set:
        if "=" not in pair:
            raise InputError(f"--set is {pair}; expected KEY=VALUE, such as lr=5e-4")
        key, value = pair.split("=", 1)
        settings[key] = value
    for flag in COLUMN_FLAGS:
        value = getattr(options, flag.replace("-", "_"))
        if value is not None:
            settings[f"flags.{flag}"] = json.dumps(value, ensure_ascii=False)
    return settings


def add_gpus_per_node(parser: ArgumentParser, default: int = GPUS_PER_NODE) -> None:
    """Adds --gpus-per-node."""
    parser.set_defaults(default_gpus=default)
    add_count(
        parser,
        "--gpus-per-node",
        f"GPUs per node (default: {default}); with --device cpu, processes per node (default: 1)",
    )


def gpus_per_node(options: Namespace) -> int:
    """Returns the value of --gpus-per-node, or its default."""
    default = 1 if options.device == "cpu" else options.default_gpus
    return default if options.gpus_per_node is None else options.gpus_per_node


def add_slurm_options(parser: ArgumentParser, default_gpus: int = GPUS_PER_NODE) -> None:
    """Adds the options of a job's resource request."""
    add = parser.add_argument
    add_count(parser, "--nodes", "nodes of a run (default: 1)")
    add_gpus_per_node(parser, default_gpus)
    add("--gpu-type", metavar="TYPE", help="SLURM's name for the GPUs, such as a100")
    for name in NAMED:
        add(f"--{name}", help=f"sbatch's --{name}")
    add_count(parser, "--cpus-per-node", "CPUs per node, for shared nodes (default: whole nodes)")
    add(
        "--sbatch",
        action="append",
        metavar="NAME=VALUE",
        help="another option of sbatch: mem=400G, exclude=node7",
    )
    add(
        "--setup",
        metavar="FILE",
        help="bash file that the job sources first: module loads, exported variables, "
        "SUPERCLIP_CONTAINER",
    )
    add_switch(
        parser,
        "--skip-data-check",
        "check only the number of shards, not the files: for data that only the nodes can access",
    )


def slurm_request(options: Namespace) -> SlurmRequest:
    """Returns the request of the options; InputError for contradictory options."""
    at_least(options, nodes=1, gpus_per_node=1, cpus_per_node=1)
    sbatch = {name: getattr(options, name) for name in NAMED if getattr(options, name)}
    for option in options.sbatch or []:
        name, _, value = option.lstrip("-").partition("=")
        if len(name) < 2:
            raise InputError(
                f"--sbatch is '{option}'; expected NAME=VALUE with sbatch's long name, such as "
                "mem=400G"
            )
        if name in OURS:
            raise InputError(
                f"--sbatch {name}={value}: the job's script sets --{name}: use an option of this "
                "command (for chdir, call it in that folder), or a copy of slurm/train.sbatch"
            )
        sbatch[name] = value
    time = sbatch.get("time", "0")
    if minutes_of(time) is None and time.upper() not in NO_TIME:
        raise InputError(
            f"--time is '{time}'; expected minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS, such as "
            "12:00:00"
        )
    if ":" in (options.gpu_type or ""):
        raise InputError(
            f"--gpu-type is '{options.gpu_type}'; expected only SLURM's name for the GPUs, such as "
            "a100; --gpus-per-node is their number"
        )
    setup = Path(options.setup).expanduser() if options.setup else None
    if setup and not setup.is_file():
        raise InputError(
            f"--setup is {setup}; expected a bash file with module loads and variables"
        )
    return SlurmRequest(
        options.device or "cuda",
        options.nodes or 1,
        gpus_per_node(options),
        options.gpu_type,
        options.cpus_per_node,
        sbatch,
        setup,
    )
