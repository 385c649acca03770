"""Imports go down the list of layers in pyproject.toml, in no circle; and the tests keep to their folders."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("unit", "training", "cluster", "patch", "docs", "gpu")
MODULES = sorted((ROOT / "tests").rglob("test_*.py"))


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    """Runs import-linter on the package in `folder`, with the contracts beside it."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    environment = os.environ | {"COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)


def test_imports_go_down_the_list_of_layers_and_in_no_circle():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


BROKEN = {  # in a module: a line that breaks a contract, and what import-linter prints
    "errors.py": ("from . import config", "errors -> config"),
    "files.py": ("def f():\n    from . import plugin", "files -> plugin"),
    "method/head.py": ("from . import model", "No cycles are allowed in method"),
    "method/loss.py": ("from ..data import captions", "method.loss -> data"),
}


def test_a_package_that_breaks_the_contracts_is_caught(tmp_path):
    package = tmp_path / "openclip_superclip"
    shutil.copytree(ROOT / package.name, package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, (line, _) in BROKEN.items():
        with open(package / file, "a") as module:
            module.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    printed = done.stdout.replace("openclip_superclip.", "")
    assert all(message in printed for _, message in BROKEN.values())
    (package / "novelty").mkdir()
    (package / "novelty" / "__init__.py").touch()
    done = lint_imports(tmp_path)
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
