"""The options that the commands which take a recipe have in common."""

import argparse
import json
from pathlib import Path

from ..errors import InputError
from ..running.run_settings import RunSettings
from ..running.training_engine import ENGINES
from .table_options import FLAGS, add_columns


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
        "--unreadable-max", type=float, default=RunSettings.unreadable_max, metavar="SHARE",
        help="of a slice's shards, or samples: where more cannot be read the run fails (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--stall-minutes", type=float, default=RunSettings.stall_minutes, metavar="M",
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


def run_settings(options: argparse.Namespace) -> RunSettings:
    """Returns what the options of `add_run_settings` say; InputError for a value that none of them can have."""
    return RunSettings(**{name: getattr(options, name) for name in RunSettings.__dataclass_fields__})


def all_settings(options: argparse.Namespace) -> dict[str, str]:
    """Returns the values of --set, and those of a table's options as such."""
    given = {flag: getattr(options, flag.removeprefix("--").replace("-", "_")) for flag in FLAGS}
    quoted = {flag: json.dumps(value, ensure_ascii=False) for flag, value in given.items() if value is not None}
    return settings(options.set) | {f"flags.{flag.removeprefix('--')}": value for flag, value in quoted.items()}


def settings(pairs: list[str]) -> dict[str, str]:
    """Returns the values of --set."""
    for pair in pairs:
        if "=" not in pair:
            raise InputError(f"--set is {pair}; expected KEY=VALUE, such as lr=5e-4")
    return dict(pair.split("=", 1) for pair in pairs)
