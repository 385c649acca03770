"""Imports go down the list of layers in pyproject.toml, in no circle; and the tests keep to their folders."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("unit", "training", "cluster", "patch", "docs", "gpu")
MODULES = sorted((ROOT / "tests").rglob("test_*.py"))


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    """Runs import-linter on the package in `folder`, with the contracts beside it."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    environment = os.environ | {"COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the package's modules and contracts, to be spoilt."""
    package = "openclip_superclip"
    shutil.copytree(ROOT / package, tmp_path / package, ignore=lambda folder, names: [
        name for name in names if not (name.endswith(".py") or (Path(folder) / name).is_dir())
    ])  # fmt: skip
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_go_down_the_list_of_layers_and_in_no_circle():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("file", "line", "told"), [
    ("errors.py", "from . import config", "errors -> config"),
    ("method/head.py", "from ..data import captions", "method.head -> data"),
    ("files.py", "def f():\n    from . import plugin", "files -> plugin"),
    ("method/head.py", "from . import model", "No cycles are allowed in method"),
], ids=["upward", "over several layers", "inside a function", "a circle"])  # fmt: skip
def test_a_package_that_breaks_the_contract_is_caught(file, line, told, copy):
    module = copy / "openclip_superclip" / file
    module.write_text(f"{module.read_text()}\n{line}\n")
    done = lint_imports(copy)
    assert done.returncode == 1
    assert told in done.stdout.replace("openclip_superclip.", "")


def test_a_folder_that_has_no_layer_is_caught(copy):
    (copy / "openclip_superclip" / "novelty").mkdir()
    (copy / "openclip_superclip" / "novelty" / "__init__.py").touch()
    done = lint_imports(copy)
    assert done.returncode == 1
    assert "novelty" in done.stdout


def imported(module: Path) -> set[str]:
    """The names of the modules that a module imports, wherever it does."""
    names = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_test_modules_import_no_other_test_module():
    names = {module.stem for module in MODULES}
    assert len(names) == len(MODULES)  # or pytest could not tell them apart
    for module in MODULES:
        assert not [name for name in imported(module) if names & set(name.split("."))], module


def test_every_test_module_lies_in_the_folder_of_its_kind_and_those_in_unit_train_nothing():
    for module in MODULES:
        assert module.parent.parent == ROOT / "tests", module
        assert module.parent.name in FOLDERS, module
    for module in (ROOT / "tests/unit").glob("test_*.py"):
        trains = {"superclip_train", "stock_train"} & {name.split(".")[-1] for name in imported(module)}
        assert not trains, module
