"""The released OpenCLIPs that a patch is for, and what their folders hold."""

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATCH = ROOT / "patches/open_clip-3.patch"
RELEASES = ["3.0.0", "3.1.0", "3.2.0", "3.3.0"]
CHANGED = [
    "open_clip/factory.py", "open_clip_train/main.py", "open_clip_train/params.py", "open_clip_train/data.py",
]  # fmt: skip
HOOKS = "open_clip/hooks.py"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]

each_release = pytest.mark.parametrize("release", RELEASES)


def copy(source: Path, folder: Path) -> Path:
    """Copies what the patch can touch, and what tells the release, to `folder`, and returns it."""
    return shutil.copytree(source, folder, ignore=shutil.ignore_patterns("model_configs", "*.gz"))


def held(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def metadata(release: str) -> str:
    return f"open_clip_torch-{release}.dist-info"
