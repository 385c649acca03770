"""The options that commands share: recipes, runs, SLURM jobs, tables."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.tables import Columns, detect_columns, is_table
from ..errors import InputError
from ..rules import at_least
from ..runs.run import DEFAULTS, DESCRIPTION, ENGINES, Settings

if TYPE_CHECKING:
    from ..runs.folder import RunFolder
    from ..runs.run import Run
    from ..runs.slurm import Placement, SlurmRequest


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Adds what makes a plan of a recipe, for `superclip plan`, `run` and `submit`."""
    parser.add_argument("recipe", metavar="RECIPE", help="a file, or a name that `superclip recipes` lists")
    parser.add_argument(
        "--data", metavar="DATA",
        help="brace pattern of shards, in quotes, no * or folder; or a .csv of pictures and captions (default: the "
        "recipe's)",
    )  # fmt: skip
    add_columns(parser, of_recipe=True)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="another value for a field of the recipe"
    )
    add_split_options(parser)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="what trains (default: %(default)s)")


def add_split_options(parser: argparse.ArgumentParser) -> None:
    """Adds how a batch is split and loaded on the GPUs, for those commands and for `superclip study --slurm`."""
    parser.add_argument("--gpu-batch-max", type=int, metavar="N", help="samples that fit a GPU: more are accumulated")
    parser.add_argument("--workers", type=int, metavar="N", help="data-loading processes of each GPU's process")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Adds what averages the ranks' gradients."""
    parser.add_argument(
        "--engine", choices=ENGINES, default="torchrun",
        help="what averages the ranks' gradients: torch.distributed, or Horovod (default: %(default)s)",
    )  # fmt: skip


def add_nproc(parser: argparse.ArgumentParser) -> None:
    """Adds how many processes train on this machine, where no job of SLURM says it."""
    parser.add_argument(
        "--nproc", type=int, metavar="N", help="processes on this machine (default: its GPUs; one for --device cpu)"
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds what `superclip run` and `superclip submit` have in common."""
    add_recipe_options(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: runs/NAME)")
    add_engine(parser)
    add_run_settings(parser)


def add_run_settings(parser: argparse.ArgumentParser) -> None:
    """Adds what a run is told that changes nothing of what is trained."""
    parser.add_argument(
        "--unreadable-max", type=float, default=Settings.unreadable_max, metavar="FRACTION",
        help="of a slice's shards, or samples: if more cannot be read the run fails (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--stall-minutes", type=float, default=Settings.stall_minutes, metavar="M",
        help="without a step, after which the run starts again; 0 for never (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="resume with another recipe, data or packages than the run began with, and note in run.json which",
    )
    parser.add_argument(
        "--stage", metavar="DIR",
        help="folder on each node's own disk: a slice's shards are copied there, those that the node's ranks read, "
        "while the slice before it trains",
    )  # fmt: skip


def run_settings(options: argparse.Namespace) -> Settings:
    """Returns the settings that the options give; InputError for an impossible value."""
    names = [name for name in Settings.__dataclass_fields__ if hasattr(options, name)]
    return Settings(**{name: getattr(options, name) for name in names})


def given_run_settings(options: argparse.Namespace) -> list[str]:
    """Returns the flags of `add_run_settings` that are given."""
    names = ("unreadable_max", "stall_minutes", "accept_changes", "stage")
    return [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) != getattr(DEFAULTS, name)]


def opened_run(
    options: argparse.Namespace, parser: argparse.ArgumentParser, placement: "Placement"
) -> tuple["Run", "RunFolder"]:
    """Returns the run of a recipe, or of a run's folder, on the machines that this process is on, and its folder."""
    from ..runs.folder import RunFolder
    from ..runs.plan import make_run, on_machines, read_with_table
    from ..runs.run import Run

    folder = Path(options.recipe)
    if not (folder / DESCRIPTION).is_file():
        set_ = all_settings(options)
        recipe = read_with_table(options.recipe, set_, options.data)
        run = make_run(
            recipe, placement.num_nodes, options.nproc or placement.num_processes(options.device), options.data,
            options.gpu_batch_max, options.workers, options.device, run_settings(options), set_,
        )  # fmt: skip
        return run, RunFolder(options.out or Path("runs") / recipe.name)
    for name, value in vars(options).items():
        if name not in ("recipe", "nproc", "dry_run", "steps", "accept_changes") and value != parser.get_default(name):
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag}: {folder} is a run, whose {DESCRIPTION} holds its options; leave {flag} out")
    run = Run.open(folder)
    if getattr(options, "accept_changes", False):
        settings = dataclasses.replace(run.settings, accept_changes=True)
        run = dataclasses.replace(run, settings=settings)
    here = run.gpus_per_node if run.device == "cpu" else placement.num_processes(run.device)
    return on_machines(run, placement.num_nodes, options.nproc or here), RunFolder(folder)


def all_settings(options: argparse.Namespace) -> dict[str, str]:
    """Returns the values of --set, and those of a table's options as such."""
    given = {flag: getattr(options, flag.removeprefix("--").replace("-", "_")) for flag in COLUMNS}
    quoted = {flag: json.dumps(value, ensure_ascii=False) for flag, value in given.items() if value is not None}
    return settings(options.set) | {f"flags.{flag.removeprefix('--')}": value for flag, value in quoted.items()}


def settings(pairs: list[str]) -> dict[str, str]:
    """Returns the values of --set."""
    for pair in pairs:
        if "=" not in pair:
            raise InputError(f"--set is {pair}; expected KEY=VALUE, such as lr=5e-4")
    return dict(pair.split("=", 1) for pair in pairs)


NAMED = ("partition", "account", "qos", "time", "constraint")  # options of sbatch that are handed on as they are


OURS = (
    "nodes", "gpus_per_node", "gpu_type", "cpus_per_node", "sbatch", "container_image", "apptainer", "mounts", "setup",
)  # fmt: skip


def add_slurm_options(parser: argparse.ArgumentParser, gpus_per_node: int) -> None:
    """Adds what a job asks for; every option is None where it is not given, and the site's file is asked."""
    parser.set_defaults(default_gpus_per_node=gpus_per_node)
    parser.add_argument("--nodes", type=int, metavar="N", help="of a run (default: 1)")
    parser.add_argument(
        "--gpus-per-node", type=int, metavar="N", help=f"processes of --device cpu (default: {gpus_per_node})"
    )
    parser.add_argument("--gpu-type", metavar="TYPE", help="SLURM's name of the GPUs: a100")
    for name in NAMED:
        parser.add_argument(f"--{name}", help="sbatch's")
    parser.add_argument(
        "--cpus-per-node", type=int, metavar="N", help="take this many CPUs of each shared node (default: whole nodes)"
    )
    parser.add_argument(
        "--sbatch", action="append", metavar="NAME=VALUE", help="any other option of sbatch: mem=400G, --exclude=node7"
    )
    container = parser.add_mutually_exclusive_group()
    container.add_argument("--container-image", metavar="IMAGE", help="train in a container of pyxis")
    container.add_argument("--apptainer", metavar="IMAGE", help="train in a container of Apptainer")
    parser.add_argument(
        "--mounts",
        metavar="PATHS",
        help="what the container also sees, beside this folder, --out and --data: /data,/scratch:/scratch",
    )
    parser.add_argument(
        "--setup", metavar="FILE", help="bash that the job reads first: module loads, exported variables"
    )
    parser.add_argument(
        "--skip-data-check",
        action="store_true",
        help="count the shards, and do not look for them: the nodes see them, this machine does not",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands, read no shards, submit nothing")


def sbatch_joined(argv: Sequence[str]) -> list[str]:
    """Returns the arguments with `--sbatch --exclude=x` as `--sbatch=--exclude=x`, which argparse can read."""
    joined: list[str] = []
    for argument in argv:
        if joined[-1:] == ["--sbatch"] and argument.startswith("-"):
            joined[-1] = f"--sbatch={argument}"
        else:
            joined.append(argument)
    return joined


def given_slurm_options(options: argparse.Namespace) -> list[str]:
    """Returns those of the options that were given, as flags."""
    return [f"--{name.replace('_', '-')}" for name in (*OURS, *NAMED) if getattr(options, name) is not None]


def with_sites_stage(settings: Settings) -> Settings:
    """Returns a run's settings with the site's --stage if none is given; an empty one removes it."""
    from ..runs.slurm import read_site

    stage = read_site().get("stage") if settings.stage is None else settings.stage
    return dataclasses.replace(settings, stage=stage or None)


def slurm_request(options: argparse.Namespace) -> "SlurmRequest":
    """Returns what the options and the site's file ask for; InputError for what cannot be."""
    from ..runs.slurm import SlurmRequest, read_site

    at_least(options, nodes=1, gpus_per_node=1, cpus_per_node=1)
    site = read_site()
    given = {name: getattr(options, name) for name in (*OURS, *NAMED) if getattr(options, name) is not None}
    if "container_image" in given or "apptainer" in given:
        site = {name: value for name, value in site.items() if name not in ("container_image", "apptainer")}
    values = site | given
    in_container = values.get("container_image") or values.get("apptainer")
    if "mounts" in given and given["mounts"] and not in_container:
        raise InputError(f"--mounts is {given['mounts']}; expected --container-image or --apptainer beside it")
    sbatch = {name: values[name] for name in NAMED if values.get(name)}
    for option in [*site.get("sbatch", []), *given.get("sbatch", [])]:
        name, _, value = str(option).removeprefix("--").partition("=")
        if not name.strip("-"):
            raise InputError(f"--sbatch is '{option}'; expected NAME=VALUE, such as mem=400G")
        sbatch[name] = value
    return SlurmRequest(
        device=options.device, nodes=values.get("nodes", 1),
        gpus_per_node=values.get("gpus_per_node", options.default_gpus_per_node),
        cpus_per_node=values.get("cpus_per_node"), sbatch=sbatch, container_image=values.get("container_image"),
        apptainer=values.get("apptainer"), mounts=values.get("mounts") if in_container else None,
        setup=Path(values["setup"]).expanduser() if values.get("setup") else None, gpu_type=values.get("gpu_type"),
    )  # fmt: skip


COLUMNS = {
    "--csv-separator": "between the columns of a table",
    "--csv-img-key": "column of its images",
    "--csv-caption-key": "column of its captions",
}


def add_columns(parser: argparse.ArgumentParser, of_recipe: bool = False, of_json: bool = False) -> None:
    """Adds the options that name the columns of a table.

    Args:
        of_recipe: whether a recipe gives those that are left out; otherwise the table's header does.
        of_json: whether captions may be in JSON files beside the images, too.
    """
    default = "the recipe's, else OpenCLIP's" if of_recipe else "what the header holds"
    for flag, help in COLUMNS.items():
        field = ", or field of each .json" if of_json and flag == "--csv-caption-key" else ""
        metavar = flag.rpartition("-")[2].upper()
        parser.add_argument(flag, metavar=metavar, help=f"{help}{field} (default: {default})")


def columns_of(options: argparse.Namespace, data: str, flag: str = "DATA") -> Columns:
    """Returns the columns that the options name, those that are left out by the table's header, and prints them.

    Without a table they are `image` and `caption`.
    """
    given = (options.csv_separator, options.csv_img_key, options.csv_caption_key)
    if not is_table(data):
        return Columns(given[0] or ",", given[1] or "image", given[2] or "caption")
    columns = detect_columns(data, *given, flag)
    if None in given:
        separator = {"\t": "a tab", ",": "a comma"}.get(columns.separator, repr(columns.separator))
        found = f"images in column '{columns.image}', captions in '{columns.caption}', separated by {separator}"
        print(f"superclip: {data}: {found}", file=sys.stderr)
    return columns
