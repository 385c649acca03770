"""Files that are whole or not there."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes its name only once it is whole."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, values: dict, allow_nan: bool = True) -> None:
    """Writes values for people and programs to read; ValueError for NaN and infinity where they are not allowed."""
    text = json.dumps(values, indent=1, allow_nan=allow_nan) + "\n"
    with whole_file(path) as file:
        file.write(text.encode())
