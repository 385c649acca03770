"""The quickstart notebook runs on a CPU, from its first cell to its last."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from support.pages import ROOT

NOTEBOOK = ROOT / "docs/quickstart.ipynb"


def printed(notebook) -> str:
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


@pytest.mark.slow
def test_the_notebook_runs_and_its_exports_agree(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell["source"] = cell["source"].replace("samples=12 passes", "samples=1 passes").replace("epoch_12", "epoch_1")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = printed(notebook)
    assert "SuperCLIP − CLIP" in text
    assert "wrong captions are among the 24 dropped pairs" in text
    assert "transformers gives the same probabilities" in text


def test_the_notebook_was_saved_with_what_it_printed():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))
    assert not [output for cell in codes for output in cell.outputs if output.output_type == "error"]
    assert "transformers gives the same probabilities" in printed(notebook)
