"""The options of the commands that submit jobs to SLURM."""

import argparse
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from ..running.slurm_request import SlurmRequest

NAMED = ("partition", "account", "qos", "time", "constraint")  # options of sbatch that are handed on as they are
OURS = ("nodes", "gpus_per_node", "cpus_per_node", "sbatch", "container_image", "apptainer", "mounts")


def add_slurm_options(parser: argparse.ArgumentParser, gpus_per_node: int) -> None:
    """Adds what a job asks for; every option is None where it is not given."""
    parser.set_defaults(default_gpus_per_node=gpus_per_node)
    parser.add_argument("--nodes", type=int, metavar="N", help="of a run (default: 1)")
    parser.add_argument(
        "--gpus-per-node", type=int, metavar="N", help=f"processes of --device cpu (default: {gpus_per_node})"
    )
    for name in NAMED:
        parser.add_argument(f"--{name}", help="sbatch's")
    parser.add_argument(
        "--cpus-per-node", type=int, metavar="N", help="take this many CPUs of each shared node (default: whole nodes)"
    )
    parser.add_argument("--sbatch", action="append", metavar="NAME=VALUE", help="any other option of sbatch: mem=400G")
    container = parser.add_mutually_exclusive_group()
    container.add_argument("--container-image", metavar="IMAGE", help="train in a container of pyxis")
    container.add_argument("--apptainer", metavar="IMAGE", help="train in a container of Apptainer")
    parser.add_argument("--mounts", metavar="PATHS", help="what the container also sees: /data,/scratch:/scratch")


def given_slurm_options(options: argparse.Namespace) -> list[str]:
    """Returns those of the options that were given, as flags."""
    return [f"--{name.replace('_', '-')}" for name in (*OURS, *NAMED) if getattr(options, name) is not None]


def slurm_request(options: argparse.Namespace) -> "SlurmRequest":
    """Returns what the options ask for; InputError for what cannot be."""
    from ..running.slurm_request import SlurmRequest

    if options.mounts and not (options.container_image or options.apptainer):
        raise InputError(f"--mounts is {options.mounts}; expected --container-image or --apptainer beside it")
    named = {name: getattr(options, name) for name in NAMED}
    others = (option.removeprefix("--").partition("=") for option in options.sbatch or [])
    sbatch = {name: value for name, value in named.items() if value} | {name: value for name, _, value in others}
    gpus_per_node = options.default_gpus_per_node if options.gpus_per_node is None else options.gpus_per_node
    return SlurmRequest(
        options.device, 1 if options.nodes is None else options.nodes, gpus_per_node, options.cpus_per_node, sbatch,
        options.container_image, options.apptainer, options.mounts,
    )  # fmt: skip
