"""Atomic files and folders: written whole or not at all."""

import ctypes
import errno
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # of writing alone


class NotWritten(OSError):
    """A library could not write a file, and says no more than this."""


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes its name only once it is whole."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with _terminated_as_by_exit():
        try:
            with open(part, "wb") as file:
                yield file
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a whole text file."""
    with whole_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, values: dict, allow_nan: bool = True) -> None:
    """Writes values for people and programs to read; ValueError for NaN and infinity where they are not allowed."""
    write_text(path, json.dumps(values, indent=1, allow_nan=allow_nan) + "\n")


@contextmanager
def whole_output(out: Path, overwrite: bool) -> Iterator[Path]:
    """A path to write a folder or file to, which becomes `out` only once it is whole.

    With `overwrite` what stood at `out` is exchanged whole: nothing of an old folder stays in the new one. Raises
    InputError where `out` exists, unless `overwrite`, and where it cannot be written, as on a full disk; an OSError of
    other files passes.
    """
    if os.path.exists(out) and not overwrite:
        raise InputError(f"--out: {out} exists; give another name, or --overwrite")
    place = Path(os.path.realpath(out))
    part = place.with_name(f"{place.name}.{os.getpid()}.part{place.suffix}")
    with _terminated_as_by_exit():
        is_body = False
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            is_body = True
            yield part
            is_body = False
            if part.is_dir() and place.is_dir():
                exchange(part, place)
            else:
                os.replace(part, place)
        except OSError as error:
            if is_body and not _is_of_writing(error, part):
                raise
            raise InputError(f"--out: {out} cannot be written ({' '.join(str(error).split())})") from error
        finally:
            if os.path.isdir(part):
                shutil.rmtree(part)
            elif os.path.lexists(part):
                part.unlink()


def _is_of_writing(error: OSError, part: Path) -> bool:
    """Returns whether an error is of writing to `part` or into it, and not of whatever else was read meanwhile."""
    if isinstance(error.filename, str | bytes | os.PathLike):
        return Path(os.path.realpath(os.fsdecode(error.filename))).is_relative_to(part)
    return isinstance(error, NotWritten) or error.errno in FULL


def exchange(new: Path, old: Path) -> None:
    """Gives two folders each other's names: at once where the system can, otherwise in two steps, of which the first
    is undone where the second fails."""
    if not _exchange_at_once(new, old):
        aside = old.with_name(f"{old.name}.{os.getpid()}.old.part")
        os.rename(old, aside)
        try:
            os.rename(new, old)
        except BaseException:
            os.rename(aside, old)
            raise
        os.rename(aside, new)


def _exchange_at_once(new: Path, old: Path) -> bool:
    """Tells whether the system has exchanged the names; not every file system can."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except AttributeError:  # it is Linux's
        return False
    working_folder, exchanged = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(working_folder, os.fsencode(new), working_folder, os.fsencode(old), exchanged) == 0


def make_folder(folder: Path, flag: str) -> None:
    """Makes a folder that results can be written to; InputError that names `flag` where they cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise InputError(f"{flag}: {folder} cannot be written ({error.strerror})") from error


@contextmanager
def _terminated_as_by_exit() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP raise SystemExit, so that what is half-written is removed.

    Where the process has handlers of its own, or in another thread than the main one, nothing changes.
    """

    def end(number, frame):
        raise SystemExit(128 + number)

    signals = []
    if threading.current_thread() is threading.main_thread():
        signals = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in signals:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_DFL)
