"""Devices, versions and processes of this machine and Python."""

import ctypes
import importlib.metadata
import importlib.util
import logging
import os
import platform
import resource
import runpy
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from .errors import InputError, reason
from .files import shipped_folder

# glibc's M_TRIM_THRESHOLD, M_MMAP_MAX and M_ARENA_MAX: all memory is in one heap, which keeps a
# gigabyte that is free
ONE_HEAP = {-1: 2**30, -4: 0, -8: 1}
MODULES = {"openclip-superclip": "openclip_superclip", "pillow": "PIL"}
FACTORY_LOCK = threading.RLock()  # held while a thread replaces names of OpenCLIP's factory


def check_horovod() -> None:
    """Raises InputError, with the script to run, if there is no Horovod for this PyTorch."""
    try:
        importlib.import_module("horovod.torch")
    except ImportError as error:
        raise InputError(
            f"--horovod: Horovod is not installed for this PyTorch ({reason(error)}): "
            f"PYTHON={sys.executable} bash {shipped_folder('slurm')}/build-horovod.sh builds "
            "and installs it"
        ) from error


def check_device(name: str | None) -> str:
    """Returns the device of --device, by default the GPU if there is one; InputError if torch
    cannot use it here.

    A GPU with an index, such as cuda:1, becomes the current one.
    """
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise InputError(
            f"--device is {name}, which torch cannot use here: {str(error).splitlines()[0]}"
        ) from error
    device = torch.device(name)
    if device.type == "cuda" and device.index is not None:  # set_device requires an index
        torch.cuda.set_device(device)
    return name


def versions(*names: str) -> dict[str, str]:
    """Returns the version of each named distribution, and of "python"; "unknown" for those without
    metadata."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    if name == "python":
        return platform.python_version()
    # These may be a checkout, or of another distribution: the module that Python imports counts.
    if name == "open_clip_torch":
        openclip = Path(importlib.util.find_spec("open_clip").origin)
        return runpy.run_path(str(openclip.with_name("version.py")))["__version__"]
    if name in MODULES:
        return importlib.import_module(MODULES[name]).__version__
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def peak_of_process() -> int:
    """Returns the most memory that this process has had, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def keep_freed_memory() -> None:
    """Makes this process keep freed memory for its next arrays, because it costs CPU time to get
    memory from the system again."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc
    if mallopt is None:
        return
    for parameter, value in ONE_HEAP.items():
        mallopt(parameter, value)


def current_time() -> str:
    """Returns this moment by this machine's clock."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def end_with_parent(death_signal: int = signal.SIGKILL, parent: int | None = None) -> None:
    """Makes the kernel end this process when its parent dies, and ends it if `parent`, the number
    of the process that started it, has died already."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux only
    if prctl:
        prctl(1, int(death_signal))
    if parent not in (None, os.getppid()):
        os.kill(os.getpid(), death_signal)


@contextmanager
def log_level(level: int) -> Iterator[None]:
    """Temporarily sets the level of the root logger."""
    before = logging.root.level
    logging.root.setLevel(level)
    try:
        yield
    finally:
        logging.root.setLevel(before)


@contextmanager
def replaced(owner: object, **values: object) -> Iterator[None]:
    """Temporarily replaces attributes of an object, such as a module or a class."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
