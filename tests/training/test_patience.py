"""--patience ends a run whose validation does not improve; the run counts
as finished."""

import textwrap

import pytest
from support import cases, read_json, refusals
from support.data import write_images, write_table
from support.tiny_run import write_recipe
from support.training_runs import call, execute, in_forks, run_superclip

from openclip_superclip.checkpoints.best_epoch import best_epoch

EPOCHS = 5
WHY = "no better validation score for 2 epochs; best epoch on the validation data: 1, with "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a table, and a recipe with a rate that changes no
    weight: the scores of all epochs are equal, so that the first one is the
    best."""
    folder = tmp_path_factory.mktemp("folder")
    table = folder / "pairs.csv"
    write_table(table, write_images(folder / "images", 32, seed=0))
    flags = {"val-data": str(table), "log-every-n-steps": 1}
    data = {"shards": str(table), "data_samples": 32, "samples": 32 * EPOCHS, "slices": 1}
    write_recipe(folder, lr=1e-30, flags=flags, **data).rename(folder / "tiny.yaml")
    return folder


@pytest.fixture(scope="module")
def stopped(folder):
    """A run of two ranks with a patience of two epochs, and what it
    printed."""
    command = "run tiny.yaml --device cpu --nproc 2 --out run --patience 2"
    with in_forks():
        code = run_superclip(command.split(), folder / "printed", folder)
    printed = (folder / "printed").read_text()
    assert code == 0, printed[-3000:]
    return folder / "run", printed


def test_a_run_stops_after_epochs_without_improvement_and_is_finished(stopped):
    run, printed = stopped
    state = read_json(run / "state.json")
    assert (state["state"], state["epoch"], state["error"]) == ("finished", 3, None)
    assert state["stopped_early"].startswith(WHY)
    assert f"superclip run: stopped after epoch 3 of {EPOCHS}: {WHY}" in printed
    assert "superclip run: finished; run/checkpoints/epoch_3.pt" in printed
    assert (
        f"superclip run: {best_epoch(run)}; superclip export run --best --out FOLDER exports it\n"
        in printed
    )
    assert "Traceback" not in printed
    assert not list(run.glob("ranks/*/*.error.json"))


def test_it_is_not_started_again_and_status_and_report_say_why(stopped, tmp_path):
    run, _ = stopped
    before = (run / "state.json").read_bytes()
    assert "is finished: nothing is left to train" in execute(f"run {run}")
    assert (run / "state.json").read_bytes() == before
    assert WHY in execute(f"status {run}")
    execute(f"report {run} --out {tmp_path}/report")
    row = (tmp_path / "report/runs.csv").read_text()
    assert "finished" in row
    assert WHY in row


def test_a_study_passes_it_on_and_counts_the_runs_that_stopped(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    study = f"""
        question: which?
        recipe: {folder}/tiny.yaml
        primary: image_to_text_R@1
        measures: validation
        seeds: 1
        arms: {{CLIP: {{method: clip}}, SuperCLIP: {{method: superclip}}}}
    """
    (tmp_path / "which.yaml").write_text(textwrap.dedent(study))
    with in_forks():
        assert call("study which.yaml --device cpu --out out --patience 1") == 0
    summary = (tmp_path / "out/study.md").read_text()
    assert "2 of 2 runs stopped early" in summary
    assert "Best epoch on the validation data, the median over the runs: CLIP 1 of 2" in summary
    assert read_json(tmp_path / "out/study.json")["command"].endswith("--patience 1")


@cases("options, message", refusals("patience"))
def test_a_patience_that_cannot_work_is_one_line(options, message, folder, tmp_path, refused):
    line = refused(tmp_path, f"run {folder}/tiny.yaml --device cpu {options}")
    assert message in line
