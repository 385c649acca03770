"""superclip doctor: prints information about the installation and the machine, for bug reports."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from .. import __version__
from ..errors import InputError, Parser, reason
from ..extras import EXTRAS


def main(argv: list[str]) -> int:
    Parser(
        "doctor",
        "Prints ten lines to paste into an issue: versions, devices, extras, free "
        "disk space and SLURM.",
    ).parse_args(argv)
    lines = {
        "openclip-superclip": f"{__version__} in {Path(__file__).parents[1]}",
        "Python": f"{platform.python_version()} ({sys.executable}), {platform.platform()}",
        "OpenCLIP": _openclip(),
        "PyTorch": _torch(),
        "other packages": ", ".join(
            f"{name} {_version(name)}" for name in ("timm", "webdataset", "pandas", "numpy")
        ),
        "plugins": ", ".join(
            sorted({entry.name for entry in importlib.metadata.entry_points(group="open_clip")})
        ),
        "extras": ", ".join(
            name if all(map(importlib.util.find_spec, packages)) else f"no {name}"
            for name, packages in EXTRAS.items()
        ),
        "CPU": f"{os.cpu_count()} cores",
        "disk": f"{shutil.disk_usage(Path.cwd()).free / 1e9:,.0f} GB free in {Path.cwd()}",
        "SLURM": _slurm(),
    }
    for name, value in lines.items():
        print(f"{name + ':':<20}{value or 'none'}")
    return 0


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _openclip() -> str:
    from ..trainer import current
    from ..trainer.hook_calls import is_patched

    version = _version("open_clip_torch")
    try:
        generation = current().__name__.rpartition("_")[2]
        return f"{version}, adapter v{generation}, {'patched' if is_patched() else 'not patched'}"
    except InputError as error:
        return f"{version}, {error}"


def _torch() -> str:
    try:
        import torch
    except Exception as error:  # a broken installation can raise anything
        return f"cannot be imported ({reason(error)})"
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    names = ", ".join(f"{gpus.count(name)} × {name}" for name in dict.fromkeys(gpus)) or "no GPU"
    return f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}, {names}"


def _slurm() -> str:
    if shutil.which("sinfo") is None:
        return ""
    version = subprocess.run(["sinfo", "--version"], capture_output=True, text=True, check=False)
    return version.stdout.strip() or "installed, but sinfo --version fails"
