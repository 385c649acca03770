"""Atomic files and folders: written whole or not at all."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import InputError


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


@contextmanager
def whole_output(out: Path, overwrite: bool) -> Iterator[Path]:
    """A path to write a folder or file to, which becomes `out` only once it is whole.

    Raises InputError where `out` exists, unless `overwrite`, and where it cannot be written, as on a full disk. In a
    folder that exists, files of the same names are replaced and others left.
    """
    if out.exists() and not overwrite:
        raise InputError(f"--out: {out} exists; give another name, or --overwrite")
    part = out.with_name(f"{out.name}.{os.getpid()}.part{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if part.is_dir() and out.is_dir():
            for file in part.iterdir():
                os.replace(file, out / file.name)
        else:
            os.replace(part, out)
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written ({' '.join(str(error).split())})") from error
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        elif part.exists():
            part.unlink()


def make_folder(folder: Path, flag: str) -> None:
    """Makes a folder that results can be written to; InputError that names `flag` where they cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise InputError(f"{flag}: {folder} cannot be written ({error.strerror})") from error
