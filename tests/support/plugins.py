"""Plugins of OpenCLIP as installed distributions, and some that disturb a
run."""

import shutil
import subprocess
import sys
import textwrap

from . import ROOT

EXAMPLES = ROOT / "examples"


def install_plugin(folder, name, source):
    """Writes a plugin with the metadata of an installed distribution; the
    folder has to be on sys.path."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / f"{name}_module.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[open_clip]\n{name} = {name}_module\n")


def write_plugin(folder, create_loss):
    """Writes a plugin of OpenCLIP's that returns another `loss`;
    PYTHONPATH=FOLDER installs it."""
    install_plugin(
        folder,
        "cracked",
        "import itertools, os, time\n"
        "from open_clip.hooks import hookimpl\n\n"
        "@hookimpl(wrapper=True)\n"
        "def open_clip_create_loss(args):\n    from open_clip import create_loss\n\n"
        "    loss = (yield) or create_loss(args)\n" + textwrap.indent(create_loss, "    "),
    )
    return folder


def write_slow_loss(folder, seconds):
    """Writes a plugin that makes each step take so many seconds more, so
    that a run can be disturbed in its midst."""
    return write_plugin(
        folder,
        f"def slow(**features):\n    time.sleep({seconds})\n    return "
        "loss(**features)\nreturn slow\n",
    )


def write_failing_plugin(folder):
    """Writes a plugin that fails on rank 1 once the model is made."""
    fails = (
        "if os.environ['RANK'] == '1':\n    raise RuntimeError('the lens of rank 1 is "
        "cracked')\nreturn loss\n"
    )
    return write_plugin(folder, fails)


def write_disturbed_loss(folder, step, what):
    """Writes a plugin with a loss that in the `step`-th step of a process
    is `what`."""
    return write_plugin(
        folder,
        "steps = itertools.count(1)\n"
        "def disturbed(**features):\n"
        "    losses, step = loss(**features), next(steps)\n"
        f"    return {{name: {what} if step == {step} else value for name, value in "
        "losses.items()}\nreturn disturbed\n",
    )


def pip_install(folder, *names):
    """Installs example plugins from their own pyproject.toml into a folder,
    and returns it."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    options = ["--no-index", "--no-compile", "--target", folder]
    for name in names:
        copy = shutil.copytree(EXAMPLES / name, folder.with_name(f"{folder.name}-source") / name)
        subprocess.run([*pip, *options, copy], check=True, timeout=100)
    return folder
