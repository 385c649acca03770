"""The folder of a run: created and locked before training, and removed if no step was made."""

import argparse
import contextlib
import logging
import os
import shutil
import tempfile
from pathlib import Path

from ..errors import InputError
from ..files import take_lock
from .parsed_options import launched

started: list[argparse.Namespace] = []  # the options of the run, with a flag of ours
_made: list[Path] = []  # the run's folder and its parent, if this process has made them
_locks: list[int] = []  # the open folder of the run


def make_folder(options: argparse.Namespace) -> None:
    """Creates the folder of a run that is about to start; InputError if it is not writable or its
    disk is full.

    OpenCLIP names the run by the time if its name is None. Only the first rank creates and locks
    the folder.
    """
    _made.clear()
    release()
    logging.raiseExceptions = False  # otherwise each line of a log on a full disk is a traceback
    folder = Path(options.logs, options.name or "").absolute()
    try:
        started[:] = [options]
        if launched()[0] == 0:
            _make_and_lock(folder, is_named=options.name is not None)
            if options.name and options.resume != "latest" and (folder / "out.log").exists():
                raise InputError(
                    f"--name: {folder} contains a run: --resume latest continues it; or give "
                    "another name"
                )
        there = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(4096))
    except OSError as error:
        remove_unstarted_run()
        where = Path(options.logs, options.name or "")
        raise InputError(f"--logs: cannot write to {where}: {error.strerror}") from error


def _make_and_lock(folder: Path, *, is_named: bool) -> None:
    """Creates a run's folder and locks it until training ends; InputError if another process holds
    the lock.

    Without a name, it is the folder of all runs, which is not locked.
    """
    parents = [] if folder.parent.exists() else [folder.parent]
    for parent in parents:
        parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        _made[:] = [folder, *parents] if is_named else []
    if not is_named:
        return
    _locks.append(os.open(folder, os.O_RDONLY))
    if take_lock(_locks[0]) is False:
        _made.clear()
        raise InputError(f"--name: another process trains into {folder}: give another name")


def release() -> None:
    """Unlocks the folder."""
    while _locks:
        os.close(_locks.pop())


def remove_unstarted_run() -> None:
    """Removes the folder of a run without a training step, because OpenCLIP refuses a name that has
    a log.

    Only a folder that this process has made is removed, and only if no other process has begun to
    fill it.
    """
    if not _made:
        return
    folder, *parents = _made
    _made.clear()
    files = [
        Path(handler.baseFilename)
        for handler in logging.root.handlers
        if hasattr(handler, "baseFilename")
    ]
    # out.log, or out-RANK with --log-local
    logs = [file for file in files if file.parent == folder]
    has_started = any("Train Epoch" in log.read_text() for log in logs) or any(
        folder.glob("checkpoints/*")
    )
    if logs and not has_started:
        shutil.rmtree(folder, ignore_errors=True)
    for path in (folder, *parents):
        with contextlib.suppress(OSError):  # it is not empty
            path.rmdir()


os.register_at_fork(after_in_child=release)  # data-loading workers must not keep the lock
