"""Training with the OpenCLIP of a folder: patched or not, by its own command or by ours."""

import importlib
import importlib.metadata
import runpy
import sys
from pathlib import Path


def enter(tree: Path) -> None:
    """Makes `tree` the OpenCLIP of this process, which has torch imported already."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("open_clip", "open_clip_train", "openclip_superclip", "pluggy"):
            del sys.modules[name]
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(tree))


def openclip_train(tree: Path, *argv: str) -> None:
    """`python -m open_clip_train.main` of the OpenCLIP in `tree`."""
    enter(tree)
    sys.argv = ["open_clip_train.main", *argv]
    runpy.run_module("open_clip_train.main", run_name="__main__", alter_sys=True)
    assert Path(sys.modules["open_clip"].__file__).parent.parent == tree


def openclip_train_without_plugins(tree: Path, *argv: str) -> None:
    """The same where no distribution has named a plugin."""
    find = importlib.metadata.entry_points
    importlib.metadata.entry_points = lambda **which: () if which.get("group") == "open_clip" else find(**which)
    openclip_train(tree, *argv)


def superclip_train_of(tree: Path, *argv: str) -> int:
    """`superclip train` with the OpenCLIP in `tree`."""
    enter(tree)
    code = importlib.import_module("openclip_superclip.__main__").main(["train", *argv])
    assert Path(sys.modules["open_clip"].__file__).parent.parent == tree
    return code
