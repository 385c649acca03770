"""Options of several commands: outputs, models, the columns of a table."""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..errors import Parser


def add_switch(parser: ArgumentParser, flag: str, help: str) -> None:
    """Adds an option without a value."""
    parser.add_argument(flag, action="store_true", help=help)


def add_number(
    parser: ArgumentParser, flag: str, default: float, help: str = "", metavar: str | None = None
) -> None:
    """Adds an option whose value is a number of the default's type."""
    help = f"{help} (default: %(default)s)".strip()
    parser.add_argument(flag, type=type(default), default=default, metavar=metavar, help=help)


def add_count(parser: ArgumentParser, flag: str, help: str) -> None:
    """Adds an option that is an integer or None."""
    parser.add_argument(flag, type=int, metavar="N", help=help)


def expanded_path(text: str) -> Path:
    """Returns a path; a shell leaves the ~ of --out=~/x."""
    return Path(os.path.expanduser(text))


def add_folder(parser: ArgumentParser, flag: str, help: str, **options) -> None:
    """Adds an option whose value is a folder."""
    parser.add_argument(flag, help=help, type=expanded_path, metavar="DIR", **options)


def add_output(
    parser: Parser,
    help: str = "folder to write",
    replaced: str = "folder",
    *,
    required: bool = True,
) -> None:
    """Adds --out and --overwrite."""
    parser.option("--out", help, type=expanded_path, required=required)
    add_switch(parser, "--overwrite", f"replace an existing {replaced}")


def add_model_options(parser: Parser) -> None:
    """Adds --architecture and --device, for a model that a command opens."""
    parser.option(
        "--architecture",
        "the name of the OpenCLIP model, if it is not recorded with the weights",
    )
    parser.option("--device", "device of the model (default: cuda if there is a GPU)")


def add_columns(parser: Parser, default: str = "from the header") -> None:
    """Adds the options that name the columns of a table."""
    columns = {
        "csv-separator": "column separator of a table",
        "csv-img-key": "column of the images",
        "csv-caption-key": "column of the captions",
    }
    for flag, about in columns.items():
        metavar = flag.rpartition("-")[2].upper()
        parser.option(f"--{flag}", f"{about} (default: {default})", metavar=metavar)


def from_options(kind: type, options: Namespace, **others):
    """Returns a dataclass whose fields are options of the same names, or `others`."""
    values = vars(options) | others
    return kind(**{name: values[name] for name in kind.__dataclass_fields__ if name in values})
