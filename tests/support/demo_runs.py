"""Small demo runs."""

import os
import subprocess
import sys
from pathlib import Path

SMALL = ["demo", "--quick", "--samples", "320"]


def link_scenes(out: Path, scenes: Path) -> None:
    """Creates a demo folder with existing scenes."""
    out.mkdir()
    (out / "data").symlink_to(scenes)


def start_demo(out, *arguments, cwd=None) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "openclip_superclip", *SMALL, "--out", str(out), *arguments],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def run_demo(out, *arguments, cwd=None) -> subprocess.CompletedProcess:
    process = start_demo(out, *arguments, cwd=cwd)
    printed, said = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, printed, said)
