"""Folders that hold an OpenCLIP: the releases that a patch is for, and
training with the one of a folder."""

import importlib
import importlib.metadata
import runpy
import shutil
import sys
import warnings
from pathlib import Path

import pytest

from .training_runs import execute, shell_words

RELEASES = ["3.0.0", "3.1.0", "3.2.0", "3.3.0"]
HOOKS = "open_clip/hooks.py"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]

each_release = pytest.mark.parametrize("release", RELEASES)


def copy(source, folder):
    """Copies an OpenCLIP without its model configurations and vocabulary to
    `folder`, and returns it."""
    return shutil.copytree(source, folder, ignore=shutil.ignore_patterns("model_configs", "*.gz"))


def held(folder):
    """Every file below `folder` and its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def patched_source(checkout, folder):
    """Patches a copy of a checkout's OpenCLIP, which can be reverted, and
    returns it."""
    source = folder / "src"
    shutil.copytree(checkout / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
    before = held(source)
    execute(f"patch apply --source {source}")
    execute(f"patch revert --source {source}")
    assert held(source) == before
    execute(f"patch apply --source {source}")
    return source


def metadata(release):
    return f"open_clip_torch-{release}.dist-info"


def enter(tree):
    """Makes `tree` the OpenCLIP of this process, which has torch imported
    already."""
    for name in list(sys.modules):
        if name.startswith(("open_clip", "openclip_superclip", "pluggy")):  # and the examples
            del sys.modules[name]
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(tree))


def openclip_train(tree, *argv):
    """`python -m open_clip_train.main` of the OpenCLIP in `tree`."""
    enter(tree)
    # a call that leaves some out
    warnings.filterwarnings("error", r"Argument\(s\) .* declared in the hookspec")
    sys.argv = ["open_clip_train.main", *shell_words(*argv)]
    runpy.run_module("open_clip_train.main", run_name="__main__", alter_sys=True)
    assert Path(sys.modules["open_clip"].__file__).parent.parent == tree


def openclip_train_without_plugins(tree, *argv):
    """The same where no distribution has named a plugin."""
    find = importlib.metadata.entry_points
    importlib.metadata.entry_points = lambda **which: (
        () if which.get("group") == "open_clip" else find(**which)
    )
    openclip_train(tree, *argv)


def superclip_train_of(tree, *argv):
    """`superclip train` with the OpenCLIP in `tree`."""
    enter(tree)
    code = importlib.import_module("openclip_superclip.__main__").main(
        ["train", *shell_words(*argv)]
    )
    assert Path(sys.modules["open_clip"].__file__).parent.parent == tree
    return code
