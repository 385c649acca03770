"""The quickstart notebook runs on a CPU, from its first cell to its
last."""

from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from support.pages import ROOT, commands
from support.training_runs import completed, run_superclip

NOTEBOOK = ROOT / "docs/quickstart.ipynb"
LESS = {
    "samples=12 passes": "samples=1 passes",
    "epoch_12": "epoch_1",
    "--seeds 2": "--seeds 1",
}
CODES = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]


def run_cells(cells, folder):
    """Runs cells as Jupyter does, but the `superclip` of their shell
    commands in forks of this process."""
    shell = InteractiveShell.instance(ipython_dir=str(folder))

    def system(line):
        for _, *arguments in commands(shell.var_expand(line), folder):
            assert run_superclip(arguments, folder / "printed", Path.cwd()) == 0, (
                folder / "printed"
            ).read_text()

    shell.system = system
    for cell in cells:
        shell.run_cell(cell).raise_error()


@pytest.mark.slow
def test_the_notebook_runs_and_its_exports_agree(tmp_path, tmp_path_factory, forks):
    cells = [cell.source for cell in CODES]
    for whole, less in LESS.items():
        assert any(whole in cell for cell in cells)
        cells = [cell.replace(whole, less) for cell in cells]
    (run,) = completed(run_cells, cells, tmp_path_factory.mktemp("shell"), cwd=tmp_path)
    assert "SuperCLIP − CLIP" in run.output
    assert "transformers gives the same probabilities" in run.output


def test_the_notebook_was_saved_with_its_output():
    assert [cell.execution_count for cell in CODES] == list(range(1, len(CODES) + 1))
    outputs = [output for cell in CODES for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert "transformers gives the same probabilities" in "".join(
        output.get("text", "") for output in outputs
    )
