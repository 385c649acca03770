"""Imports go down the list of layers in pyproject.toml, in no circle; and the tests keep to their folders."""

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("unit", "training", "cluster", "patch", "docs", "gpu")
MODULES = sorted((ROOT / "tests").rglob("test_*.py"))


def test_imports_go_down_the_list_of_layers_and_in_no_circle():
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    environment = os.environ | {"COLUMNS": "200"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


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
