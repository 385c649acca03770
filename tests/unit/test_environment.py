"""The versions that a record names are those of the modules that Python
imports."""

import importlib.metadata
import sys

from openclip_superclip.environment import versions


def test_the_version_of_openclip_is_that_of_the_checkout(tmp_path, monkeypatch):
    package = tmp_path / "open_clip"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "version.py").write_text("__version__ = '4.2.dev0'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "open_clip")
    assert versions("open_clip_torch") == {"open_clip_torch": "4.2.dev0"}


def test_a_package_without_metadata_has_a_version(monkeypatch):
    def no_metadata(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", no_metadata)
    found = versions("pillow", "open_clip_torch", "openclip-superclip", "timm")
    assert found.pop("timm") == "unknown"
    assert all(version[0].isdigit() for version in found.values())
