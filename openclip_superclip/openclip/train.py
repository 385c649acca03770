"""`superclip train`, and a check of its command line without data or models."""

import argparse
import contextlib
import fcntl
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from traceback import walk_tb

from ..checkpoints.run_outputs import is_complete, quarantine
from ..errors import InputError, check, one_line, reason
from ..files import is_full, why_full
from . import current, replacing
from .checks import DATA
from .horovod import join_ranks
from .options import launched

OURS = "superclip"  # the entry point of this package's plugin


def register_plugin(plugin: object) -> None:
    """Registers a plugin in this process, in addition to the installed ones."""
    # an installed plugin cannot be loaded; training reports it
    with contextlib.suppress(RuntimeError):
        replacing.hooks_module().plugin_manager().register(plugin)


def train(argv: list[str]) -> int:
    """Trains like `python -m open_clip_train.main` and returns the exit code, 1 if OpenCLIP
    fails."""
    # torchrun needs it so as not to parse flags such as --logs, and passes it on
    if argv[:1] == ["--"]:
        argv = argv[1:]
    result = -1
    _started.clear()
    try:
        result = _train(argv)
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
    finally:
        if result is not None:  # OpenCLIP returns -1 on errors
            remove_unstarted_run()
        _release()
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.")]:
            # otherwise torch.compile prints statistics at exit
            logging.getLogger(name).setLevel(logging.WARNING)
    return 0 if result is None else 1


def _train(argv: list[str]):
    try:
        replacing.hooks_module().plugin_manager()
    except RuntimeError as error:  # a plugin cannot be loaded; the message names it
        raise InputError(str(error)) from error
    _check_device(argv)
    args = None if replacing.is_patched() else replacing.parse_args(argv)
    if args is not None:
        check(DATA, args)
    from open_clip_train.main import main

    if "--horovod" in argv:
        join_ranks()
    if args is not None:
        replacing.install(args)
        if launched()[0] == 0:
            passed_on = (f"open_clip_train.data.{name}" for name in current().PASSED_ON)
            names = ", ".join([*replacing.REPLACED, *current().WRAPPERS, *passed_on])
            print(
                "superclip: this OpenCLIP is not patched; in this process the plugins replace "
                f"{names}",
                flush=True,
            )
    return main(argv)


def _check_device(argv: list[str]) -> None:
    """Raises InputError for --device cuda beside a flag of ours if there is no GPU: OpenCLIP
    would use the CPU."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--device", nargs="?")  # OpenCLIP's parser reports a missing value
    device = parser.parse_known_args(argv)[0].device or ""
    if not device.startswith("cuda") or not any(
        argument.startswith("--superclip") for argument in argv
    ):
        return
    from torch.cuda import is_available

    if not is_available():
        raise InputError(
            f"--device is {device}, and PyTorch finds no GPU here: expected --device cpu"
        )


_started: list[argparse.Namespace] = []  # the options of the run, with a flag of ours
_made: list[Path] = []  # the run's folder and its parent, if this process has made them
_locks: list[int] = []  # the open folder of the run


def note_begin(args: argparse.Namespace) -> None:
    """Creates the folder of a run that is about to start; InputError if it is not writable or its
    disk is full.

    OpenCLIP names the run by the time if its name is None. Only the first rank creates and locks
    the folder.
    """
    _made.clear()
    _release()
    logging.raiseExceptions = False  # otherwise each line of a log on a full disk is a traceback
    folder = Path(args.logs, args.name or "").absolute()
    try:
        if launched()[0] == 0:
            _started[:] = [args]
            _make(folder, is_named=args.name is not None)
        there = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(4096))
    except OSError as error:
        remove_unstarted_run()
        where = Path(args.logs, args.name or "")
        raise InputError(f"--logs: cannot write to {where}: {error.strerror}") from error


def _make(folder: Path, is_named: bool) -> None:
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
    try:
        fcntl.flock(_locks[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _made.clear()
        raise InputError(
            f"--name: another process trains into {folder}: give another name"
        ) from None
    except OSError:  # a file system without such locks
        pass


def _release() -> None:
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
    logging.disable(logging.CRITICAL)  # torch would log compilation statistics at exit
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


@contextlib.contextmanager
def explained_errors() -> Iterator[None]:
    """Raises InputError instead of a plugin's error and, with a flag of ours, of that of a full
    disk.

    An incomplete checkpoint is removed from a full disk.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if plugin := _failed_plugin(error):
            raise InputError(plugin) from error
        if not _started or not is_full(error):
            raise
        (args,) = _started
        checkpoints = Path(
            getattr(args, "checkpoint_path", None)
            or Path(args.logs, args.name or "", "checkpoints")
        )
        removed = quarantine(checkpoints, is_complete, None)
        if (unfinished := checkpoints / "tmp.pt").exists() and not is_complete(unfinished):
            unfinished.unlink()
            removed.append(unfinished)
        advice = f"; {removed[0].name} was incomplete and is removed" if removed else ""
        raise InputError(
            f"--logs: {checkpoints.parent} cannot be written ({why_full(error)}){advice}"
        ) from error


def _failed_plugin(error: Exception) -> str:
    """Returns which plugin raised an error in which hook, in one line; "" for no plugin's error,
    and for ours."""
    manager = replacing.hooks_module().plugin_manager()
    hooks = {}
    for name in (name for name in vars(manager.hook) if name.startswith("open_clip_")):
        for implementation in getattr(manager.hook, name).get_hookimpls():
            code = getattr(implementation.function, "__code__", None)
            hooks[code] = (implementation.plugin_name, name)
    found = [
        (hooks[frame.f_code], frame, line)
        for frame, line in walk_tb(error.__traceback__)
        if frame.f_code in hooks
    ]
    if not found or found[-1][0][0] == OURS:
        return ""
    (plugin, hook), frame, line = found[-1]
    where = f"{frame.f_code.co_filename}:{line}"
    return (
        f"open_clip plugin '{plugin}' failed in {hook}: {type(error).__name__}: "
        f"{reason(error)} ({where})"
    )


os.register_at_fork(after_in_child=_release)  # data-loading workers must not keep the lock


def check_command(argv: list[str]) -> argparse.Namespace:
    """Returns the parsed arguments of `superclip train`, models and data unchecked; InputError
    if they are refused."""
    try:
        with explained_errors():
            return replacing.parse_args(argv, only_options=True)
    except SystemExit as error:
        raise InputError(f"flags: {str(error).removeprefix('error: ')}") from None
    except (SyntaxError, ValueError) as error:  # including OpenCLIP's own, such as for a NAME=VALUE
        raise InputError(f"flags: OpenCLIP refuses them: {reason(error)}") from None
