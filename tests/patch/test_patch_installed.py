"""A patched OpenCLIP that is installed: pip, and our own wheel."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import whatthepatch
from support.openclip_releases import HOOKS, PIP, ROOT, held

import openclip_superclip
from openclip_superclip import hooks


class Environment:
    """A virtual environment without torch, and with our package beside it on the path."""

    def __init__(self, folder: Path):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        self.python = folder / "venv/bin/python"
        self.site_packages = next((folder / "venv").glob("lib/python*/site-packages"))
        self.path = folder / "path"
        shutil.copytree(Path(whatthepatch.__file__).parent, self.path / "whatthepatch")
        shutil.copytree(Path(openclip_superclip.__file__).parent, self.path / "openclip_superclip")
        shutil.copytree(ROOT / "patches", self.path / "patches")

    def pip(self, *argv) -> None:
        subprocess.run([*PIP, "--python", self.python, *argv], check=True)

    def superclip_patch(self, *argv) -> tuple[int, str]:
        command = [self.python, "-m", "openclip_superclip", "patch", *argv]
        environment = os.environ | {"PYTHONPATH": str(self.path)}
        done = subprocess.run(command, cwd=self.path, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    def compile(self) -> None:
        """Leaves what a first import leaves beside the files."""
        subprocess.run([self.python, "-m", "compileall", "-q", self.site_packages], check=True)


def test_pip_replaces_and_removes_a_patched_openclip_without_a_trace(wheels, tmp_path):
    environment = Environment(tmp_path)
    code, output = environment.superclip_patch("apply")
    assert code == 2
    assert output.startswith("error: OpenCLIP is not installed: pip install ")
    empty = held(environment.site_packages)

    environment.pip("install", "--no-deps", wheels["3.3.0"])
    fresh = held(environment.site_packages).keys()
    environment.pip("install", "--no-deps", wheels["3.2.0"])
    assert environment.superclip_patch("apply")[0] == 0
    environment.compile()
    environment.pip("install", "--no-deps", wheels["3.3.0"])
    assert held(environment.site_packages).keys() == fresh
    assert environment.superclip_patch("check")[0] == 1

    assert environment.superclip_patch("apply")[0] == 0
    environment.compile()
    assert held(environment.site_packages).keys() > fresh
    environment.pip("uninstall", "--yes", "open_clip_torch")
    assert held(environment.site_packages) == empty


def test_without_source_it_is_the_installed_openclip_and_torch_is_not_imported(wheel):
    program = (
        "import sys; from openclip_superclip.__main__ import main; main(['patch', 'apply'])\n"
        "sys.exit(bool({'torch', 'open_clip'} & sys.modules.keys()))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(wheel)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"open_clip_torch 3.3.0 in {wheel}: applied\n")


def test_our_wheel_holds_the_patches(wheel, tmp_path):
    subprocess.run([*PIP, "wheel", "--no-deps", "--wheel-dir", tmp_path / "dist", ROOT], check=True)
    (ours,) = (tmp_path / "dist").iterdir()
    zipfile.ZipFile(ours).extractall(tmp_path / "ours")
    patches = {path.name: path.read_bytes() for path in (ROOT / "patches").glob("*.patch")}
    assert held(tmp_path / "ours/openclip_superclip/patches") == patches
    command = [sys.executable, "-m", "openclip_superclip", "patch", "apply", "--source", wheel]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "ours")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (wheel / HOOKS).read_bytes() == Path(hooks.__file__).read_bytes()
