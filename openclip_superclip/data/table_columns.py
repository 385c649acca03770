"""How OpenCLIP tells a table from shards, and reads it."""

from typing import NamedTuple


class Columns(NamedTuple):
    """OpenCLIP's --csv-separator, --csv-img-key and --csv-caption-key."""

    separator: str = "\t"
    image: str = "filepath"
    caption: str = "title"


def is_table_file(path: str | None) -> bool:
    """Returns whether OpenCLIP takes a path for a table by its name alone."""
    return bool(path) and path.rpartition(".")[2] in ("csv", "tsv")
