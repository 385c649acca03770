"""The best epoch of a run is the one with the best validation scores; its
checkpoint is kept and exported."""

import json
import shutil

import open_clip
import pytest
import torch
from support import cases, parametrize, table
from support.models import random_weights
from support.training_runs import execute

from openclip_superclip.checkpoints.best_epoch import best_epoch
from openclip_superclip.plans.run import Run
from openclip_superclip.runs.folder import NUM_KEPT, RunFolder


def write_results(run, *epochs):
    """Writes what a run has measured: values of `retrieval`, or others."""
    rows = [epoch if isinstance(epoch, dict) else retrieval(*epoch) for epoch in epochs]
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "checkpoints/results.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return run


def retrieval(epoch, to_text, to_image, loss=1.0):
    return {
        "epoch": epoch,
        "image_to_text_R@1": to_text,
        "text_to_image_R@1": to_image,
        "clip_val_loss": loss,
    }


@cases("rows, best", table("runs: best epochs"))
def test_the_best_epoch_has_the_highest_score_then_the_lowest_loss(rows, best, tmp_path):
    found = best_epoch(write_results(tmp_path, *rows))
    assert (found and [found.epoch, pytest.approx(found.score)]) == best


@pytest.fixture
def run(tmp_path, tiny_model):
    """A run of three epochs, the second of which is the best one."""
    run = write_results(
        tmp_path / "run", *([epoch, 0.1 * (epoch == 2), 0.1] for epoch in (1, 2, 3))
    )
    (run / "params.txt").write_text(f"model: {tiny_model}\n")
    weights = random_weights(tiny_model)
    for epoch in (1, 2, 3):
        weights["logit_scale"] = torch.tensor(float(epoch))
        torch.save({"epoch": epoch, "state_dict": weights}, run / f"checkpoints/epoch_{epoch}.pt")
    return run


@parametrize("options, epoch", [([], 3), (["--best"], 2)], ids=["last", "best"])
def test_export_of_a_run_takes_the_last_checkpoint_or_the_best_one(run, options, epoch, tmp_path):
    assert f"as plain CLIP, epoch_{epoch}.pt of {run}" in execute(
        f"export {run}", *options, "--out", tmp_path / "exported"
    )
    assert open_clip.create_model(f"local-dir:{tmp_path}/exported").logit_scale == epoch


def test_a_best_epoch_without_a_checkpoint_and_a_run_without_scores_are_refused(
    run, tmp_path, refused
):
    (run / "checkpoints/epoch_2.pt").unlink()
    line = refused(tmp_path, f"export {run} --best --out exported")
    assert (
        "--best: best epoch on the validation data: 2, with 10.0 % R@1, but its checkpoint was "
        "not saved" in line
    )
    assert line.endswith(f"give one of {run}/checkpoints/epoch_1.pt, {run}/checkpoints/epoch_3.pt")
    (run / "checkpoints/results.jsonl").unlink()
    assert f"--best: {run} has no retrieval scores" in refused(
        tmp_path, f"export {run} --best --out exported"
    )
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    assert "is a run without a complete checkpoints/epoch_N.pt" in refused(
        tmp_path, f"export {run} --out exported"
    )


def test_the_best_checkpoint_is_kept(tmp_path, monkeypatch):
    number = NUM_KEPT + 4
    write_results(tmp_path, *([epoch, 0.1 * (epoch == 2), 0.1] for epoch in range(1, number)))
    for epoch in range(1, number + 1):
        torch.save({}, tmp_path / f"checkpoints/epoch_{epoch}.pt")
    monkeypatch.setattr(Run, "keeps", lambda run, epoch: epoch == 1)
    RunFolder(tmp_path).prune(Run.__new__(Run))
    kept = sorted(int(path.stem.partition("_")[2]) for path in tmp_path.glob("checkpoints/*.pt"))
    assert kept == [1, 2, *range(number - NUM_KEPT + 1, number + 1)]
