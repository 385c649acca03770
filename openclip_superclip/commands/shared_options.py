"""Options of several commands: outputs, models, the columns of a table."""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..data.tables import Columns, detect_columns, is_table
from ..errors import Parser, no_effect, to_stderr


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


def add_folder(parser: ArgumentParser, flag: str, help: str, **options) -> None:
    """Adds an option whose value is a folder."""
    parser.add_argument(flag, help=help, type=Path, metavar="DIR", **options)


def add_output(parser: Parser, help: str = "folder to write", replaced: str = "folder") -> None:
    """Adds --out and --overwrite."""
    parser.option("--out", help, type=Path, required=True)
    add_switch(parser, "--overwrite", f"replace an existing {replaced}")


def add_model_options(parser: Parser) -> None:
    """Adds --architecture and --device, for a model that a command opens."""
    parser.option(
        "--architecture",
        "the name of the OpenCLIP model, if it is not recorded with the weights",
    )
    parser.option("--device", "device of the model (default: cuda if there is a GPU)")


def add_columns(parser: Parser, default: str = "from the header", captions: str = "") -> None:
    """Adds the options that name the columns of a table; `captions` extends the help of their
    column."""
    columns = {
        "csv-separator": "column separator of a table",
        "csv-img-key": "column of the images",
        "csv-caption-key": f"column of the captions{captions}",
    }
    for flag, about in columns.items():
        metavar = flag.rpartition("-")[2].upper()
        parser.option(f"--{flag}", f"{about} (default: {default})", metavar=metavar)


def from_options(kind: type, options: Namespace, **others):
    """Returns a dataclass whose fields are options of the same names, or `others`."""
    values = vars(options) | others
    return kind(**{name: values[name] for name in kind.__dataclass_fields__ if name in values})


def columns_of(options: Namespace, data: str, flag: str = "DATA") -> Columns:
    """Returns the columns of the options, by default detected from the table's header, and prints
    detected ones.

    Without a table, only the field of captions in a folder's .json files can be given; it is "" if
    it is not.
    """
    if not is_table(data):
        no_effect(options, data, "csv_separator", "csv_img_key")
        if not os.path.isdir(data):
            no_effect(options, data, "csv_caption_key")
        return Columns(caption=options.csv_caption_key or "")
    chosen = (options.csv_separator, options.csv_img_key, options.csv_caption_key)
    columns = detect_columns(data, *chosen, flag)
    if None in chosen:
        to_stderr(f"superclip: {data}: {columns.description}")
    return columns
