"""The options by which the commands that read a table find its columns, named as OpenCLIP's are."""

import argparse

from ..data.table_columns import Columns

OPENCLIPS = Columns()
OURS = Columns(",", "image", "caption")  # of commands that read pairs for something else than training
FLAGS = {
    "--csv-separator": "between the columns of a table",
    "--csv-img-key": "column of its pictures",
    "--csv-caption-key": "column of its captions",
}
SEPARATORS = {"\t": "a tab", ",": "a comma"}


def add_columns(
    parser: argparse.ArgumentParser, defaults: Columns = OPENCLIPS, of_recipe: bool = False, of_json: bool = False
) -> None:
    """Adds them.

    Args:
        of_recipe: whether one that is left out is the recipe's, and only then the default.
        of_json: whether captions may be in JSON files beside the pictures, too.
    """
    for (flag, help), default in zip(FLAGS.items(), defaults, strict=True):
        field = ", or field of each .json" if of_json and flag == "--csv-caption-key" else ""
        told = SEPARATORS.get(default, default)
        told = f"the recipe's, else {told}" if of_recipe else told
        parser.add_argument(
            flag, default=None if of_recipe else default, metavar=flag.rpartition("-")[2].upper(),
            help=f"{help}{field} (default: {told})",
        )  # fmt: skip


def columns_of(options: argparse.Namespace) -> Columns:
    """Returns the columns that the options name."""
    return Columns(options.csv_separator, options.csv_img_key, options.csv_caption_key)
