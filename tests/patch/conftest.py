"""The released wheels of OpenCLIP: as they are, unpacked, patched."""

import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

import pytest
from support.openclip_releases import PIP, RELEASES, copy

from openclip_superclip.__main__ import main


@pytest.fixture(scope="session")
def wheels(pytestconfig) -> dict[str, Path]:
    """The released wheels; downloaded once, into pytest's cache."""
    folder = pytestconfig.cache.mkdir("open_clip_torch")
    for release in RELEASES:
        if not [*folder.glob(f"open_clip_torch-{release}-*.whl")]:
            with tempfile.TemporaryDirectory(dir=folder) as partial:
                subprocess.run(
                    [*PIP, "download", "--no-deps", "--dest", partial, f"open_clip_torch=={release}"], check=True
                )
                (wheel,) = Path(partial).iterdir()
                wheel.rename(folder / wheel.name)
    return {release: next(folder.glob(f"open_clip_torch-{release}-*.whl")) for release in RELEASES}


@pytest.fixture(scope="session")
def released(wheels, tmp_path_factory) -> dict[str, Path]:
    """The wheels, unpacked; not to be changed."""
    folder = tmp_path_factory.mktemp("released")
    for release, wheel in wheels.items():
        zipfile.ZipFile(wheel).extractall(folder / release)
    return {release: folder / release for release in RELEASES}


@pytest.fixture(scope="session")
def patched(released, tmp_path_factory) -> dict[str, Path]:
    """The wheels, unpacked and patched; not to be changed."""
    folder = tmp_path_factory.mktemp("patched")
    for release in RELEASES:
        shutil.copytree(released[release], folder / release)
        assert main(["patch", "apply", "--source", str(folder / release)]) == 0
    return {release: folder / release for release in RELEASES}


@pytest.fixture
def wheel(released, tmp_path) -> Path:
    """The last release, unpacked: the files that matter to the patch, and RECORD."""
    return copy(released["3.3.0"], tmp_path / "wheel")


@pytest.fixture
def checkout(released, tmp_path) -> Path:
    """The last release as a checkout has it: below src, without metadata."""
    copy(released["3.3.0"], tmp_path / "checkout/src")
    shutil.rmtree(next((tmp_path / "checkout/src").glob("*.dist-info")))
    return tmp_path / "checkout"


@pytest.fixture
def superclip_patch(capsys):
    """`superclip patch`: its exit code and what it printed."""

    def superclip_patch(*argv):
        capsys.readouterr()
        code = main(["patch", *map(str, argv)])
        return code, "".join(capsys.readouterr())

    return superclip_patch
