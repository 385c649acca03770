"""The options of the commands that submit jobs to SLURM."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .least_values import check_least

if TYPE_CHECKING:
    from ..running.run_settings import RunSettings
    from ..running.slurm_request import SlurmRequest

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


def with_sites_stage(settings: "RunSettings") -> "RunSettings":
    """Returns a run's settings with the site's --stage where none is given; an empty one removes it."""
    from ..running.site_file import read_site

    stage = read_site().get("stage") if settings.stage is None else settings.stage
    return dataclasses.replace(settings, stage=stage or None)


def slurm_request(options: argparse.Namespace) -> "SlurmRequest":
    """Returns what the options and the site's file ask for; InputError for what cannot be."""
    from ..running.site_file import read_site
    from ..running.slurm_request import SlurmRequest

    check_least(options, nodes=1, gpus_per_node=1, cpus_per_node=1)
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
