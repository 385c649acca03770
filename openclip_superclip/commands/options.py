"""Options of several commands: recipes, runs, SLURM jobs, tables."""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

from ..data.tables import Columns, detect_columns, is_table
from ..errors import InputError, at_least, no_effect
from ..runs.folder import RunFolder
from ..runs.plan import make_run, on_machines, settings_of_table
from ..runs.recipe import COLUMN_FLAGS, read_recipe
from ..runs.run import DEFAULTS, Run, Settings
from ..runs.slurm import NAMED, OURS, Placement, SlurmRequest

RUN_SETTINGS = ("unreadable_max", "stall_minutes", "accept_changes", "stage")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds --device for training on this machine; `device_here` returns the default."""
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), help="device (default: cuda if there is a GPU)"
    )


def device_here() -> str:
    """Returns the default of --device: the GPU if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def add_recipe_options(parser: argparse.ArgumentParser, here: bool) -> None:
    """Adds the options that turn a recipe into a plan, for this machine (`here`) or for machines
    with GPUs."""
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a file, or a name listed by `superclip recipes`"
    )
    add_data_options(parser, "the recipe's")
    add_split_options(parser)
    if here:
        add_device(parser)
        parser.add_argument(
            "--nproc", type=int, metavar="N", help="processes (default: one per GPU; one on a CPU)"
        )
    else:
        parser.add_argument(
            "--device",
            choices=("cuda", "cpu"),
            default="cuda",
            help="device (default: %(default)s)",
        )


def planned_run(
    options: argparse.Namespace,
    nodes: int,
    gpus_per_node: int,
    device: str,
    settings: Settings = DEFAULTS,
) -> Run:
    """Returns the run of the options that `add_recipe_options` adds, on given machines."""
    set_ = all_settings(options)
    recipe = read_recipe(
        options.recipe, {**set_, **settings_of_table(options.recipe, set_, options.data)}
    )
    return make_run(
        recipe,
        nodes,
        gpus_per_node,
        options.data,
        options.gpu_batch_max,
        options.workers,
        device,
        settings,
        set_,
    )


def add_data_options(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds options that override the data and the fields of a recipe."""
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="brace pattern of shards to train on, in quotes, or a .csv of images and captions "
        f"(default: {default})",
    )
    add_columns(parser, of_recipe=True)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace the value of a recipe's field",
    )


def add_split_options(parser: argparse.ArgumentParser) -> None:
    """Adds options on splitting and loading batches."""
    parser.add_argument(
        "--gpu-batch-max",
        type=int,
        metavar="N",
        help="largest batch size per GPU; larger batches are accumulated",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="data-loading processes per GPU")


def add_run_options(parser: argparse.ArgumentParser, here: bool) -> None:
    """Adds the common options of `superclip run` and `superclip submit`."""
    add_recipe_options(parser, here)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the run (default: runs/NAME)"
    )
    add_settings(parser, "engine", *RUN_SETTINGS)


def add_settings(parser: argparse.ArgumentParser, *names: str) -> None:
    """Adds options that do not affect the trained model, by their names in Settings."""
    for name in names:
        about = Settings.__dataclass_fields__[name]
        parser.add_argument(flag_of(name), default=about.default, **about.metadata)


def run_settings(options: argparse.Namespace, without_runs: str = "") -> Settings:
    """Returns the settings of the options; InputError for an invalid one, or any beside a flag
    that trains no run."""
    given = [
        name
        for name in RUN_SETTINGS
        if without_runs and getattr(options, name) != getattr(DEFAULTS, name)
    ]
    if given:
        raise InputError(
            f"{flag_of(given[0])} has no effect with {without_runs}: leave one of them out"
        )
    return Settings(
        **{
            name: value
            for name, value in vars(options).items()
            if name in Settings.__dataclass_fields__
        }
    )


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def opened_run(
    options: argparse.Namespace, parser: argparse.ArgumentParser, placement: Placement
) -> tuple[Run, RunFolder]:
    """Returns the run of a recipe or of a run's folder on the current machines, and its folder."""
    folder = Path(options.recipe)
    if not Run.is_in(folder):
        # a job's GPU may have failed
        device = options.device or (placement.job and "cuda") or device_here()
        num_processes = options.nproc or placement.num_processes(device)
        run = planned_run(
            options, placement.num_nodes, num_processes, device, run_settings(options)
        )
        return run, RunFolder(options.out or Path("runs") / run.recipe.name)
    for name, value in vars(options).items():
        if name not in (
            "recipe",
            "nproc",
            "dry_run",
            "steps",
            "accept_changes",
        ) and value != parser.get_default(name):
            flag = flag_of(name)
            raise InputError(
                f"{flag}: the options of the run {folder} are in its run.json; leave {flag} out"
            )
    run = Run.open(folder)
    if getattr(options, "accept_changes", False):
        run = dataclasses.replace(
            run, settings=dataclasses.replace(run.settings, accept_changes=True)
        )
    here = run.gpus_per_node if run.device == "cpu" else placement.num_processes(run.device)
    return on_machines(run, placement.num_nodes, options.nproc or here), RunFolder(folder)


def all_settings(options: argparse.Namespace) -> dict[str, str]:
    """Returns the values of --set, including those of a table's options."""
    for pair in options.set:
        if "=" not in pair:
            raise InputError(f"--set is {pair}; expected KEY=VALUE, such as lr=5e-4")
    given = {flag: getattr(options, flag.replace("-", "_")) for flag in COLUMN_FLAGS}
    quoted = {
        flag: json.dumps(value, ensure_ascii=False)
        for flag, value in given.items()
        if value is not None
    }
    return dict(pair.split("=", 1) for pair in options.set) | {
        f"flags.{flag}": quoted[flag] for flag in quoted
    }


def add_slurm_options(parser: argparse.ArgumentParser, gpus_per_node: int) -> None:
    """Adds the options of a job's resource request."""
    add = parser.add_argument
    parser.set_defaults(default_gpus_per_node=gpus_per_node)
    add("--nodes", type=int, metavar="N", help="nodes of a run (default: 1)")
    about = f"GPUs per node; with --device cpu, processes per node (default: {gpus_per_node})"
    add("--gpus-per-node", type=int, metavar="N", help=about)
    add("--gpu-type", metavar="TYPE", help="SLURM's name of the GPUs, such as a100")
    for name in NAMED:
        parser.add_argument(f"--{name}", help=f"sbatch's --{name}")
    add(
        "--cpus-per-node",
        type=int,
        metavar="N",
        help="CPUs per node, for shared nodes (default: whole nodes)",
    )
    add(
        "--sbatch",
        action="append",
        metavar="NAME=VALUE",
        help="another option of sbatch: mem=400G, exclude=node7",
    )
    about = (
        "bash file that the job sources first: module loads, exported variables, "
        "SUPERCLIP_CONTAINER"
    )
    add("--setup", metavar="FILE", help=about)
    about = (
        "check only the number of shards, not the files: for data that only the nodes can access"
    )
    add("--skip-data-check", action="store_true", help=about)
    add("--dry-run", action="store_true", help="print the commands; read no shards, submit nothing")


def slurm_request(options: argparse.Namespace) -> SlurmRequest:
    """Returns the request of the options; InputError for contradictory options."""
    at_least(options, nodes=1, gpus_per_node=1, cpus_per_node=1)
    sbatch = {name: value for name in NAMED if (value := getattr(options, name))}
    for option in options.sbatch or []:
        name, _, value = option.lstrip("-").partition("=")
        if len(name) < 2:
            raise InputError(
                f"--sbatch is '{option}'; expected NAME=VALUE with sbatch's long name, such as "
                "mem=400G"
            )
        if name in OURS:
            raise InputError(f"--sbatch {name}={value}: use {OURS[name]} instead")
        sbatch[name] = value
    setup = Path(options.setup).expanduser() if options.setup else None
    if setup and not setup.is_file():
        raise InputError(
            f"--setup is {setup}; expected a bash file with module loads and variables"
        )
    return SlurmRequest(
        options.device or "cuda",
        options.nodes or 1,
        options.gpus_per_node or options.default_gpus_per_node,
        options.gpu_type,
        options.cpus_per_node,
        sbatch,
        setup,
    )


COLUMN_HELP = ("column separator of a table", "column of the images", "column of the captions")


def add_columns(
    parser: argparse.ArgumentParser, of_recipe: bool = False, of_json: bool = False
) -> None:
    """Adds the options that name the columns of a table.

    A recipe can set them with `of_recipe`; with `of_json`, captions can also be in JSON files
    beside the images.
    """
    default = "the recipe's, else from the header" if of_recipe else "from the header"
    for flag, help in zip(COLUMN_FLAGS, COLUMN_HELP, strict=True):
        field = ", or field of each .json" if of_json and flag == "csv-caption-key" else ""
        metavar = flag.rpartition("-")[2].upper()
        parser.add_argument(
            f"--{flag}", metavar=metavar, help=f"{help}{field} (default: {default})"
        )


def columns_of(options: argparse.Namespace, data: str, flag: str = "DATA") -> Columns:
    """Returns the columns of the options, by default detected from the table's header, and prints
    detected ones.

    Without a table, only the field of captions in a folder's .json files can be given; it is "" if
    it is not.
    """
    given = (options.csv_separator, options.csv_img_key, options.csv_caption_key)
    if not is_table(data):
        no_effect(options, data, "csv_separator", "csv_img_key")
        if not os.path.isdir(data):
            no_effect(options, data, "csv_caption_key")
        return Columns(caption=options.csv_caption_key or "")
    columns = detect_columns(data, *given, flag)
    if None in given:
        print(f"superclip: {data}: {columns.description}", file=sys.stderr)
    return columns
