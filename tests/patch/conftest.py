"""A released OpenCLIP to be patched, and the command that patches it."""

import shutil
from pathlib import Path

import pytest
from support.openclip_releases import copy

from openclip_superclip.__main__ import main


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
