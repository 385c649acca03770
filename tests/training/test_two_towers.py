"""A model of a timm and a Hugging Face tower is accepted by every command."""

import open_clip
import pytest
import torch
from support.data import write_colours
from support.evaluation import evaluate
from support.training_runs import execute, run_train, write_two_towers


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with two towers, `start`, a table, and the run `logs/run`
    that was trained from them."""
    folder = tmp_path_factory.mktemp("towers")
    run_train(write_two_towers(folder), cwd=folder)
    return folder


def test_training_starts_from_both_towers_and_the_export_opens_in_stock_openclip(trained, tmp_path):
    checkpoint = trained / "logs/run/checkpoints/epoch_1.pt"
    execute(f"export {checkpoint} --out {tmp_path}/exported")
    folders = (trained / "start", tmp_path / "exported")
    start, end = (open_clip.create_model(f"local-dir:{each}").state_dict() for each in folders)
    assert start.keys() == end.keys()
    moved = {
        name: (end[name] - start[name]).abs().max()
        for name in start
        if start[name].is_floating_point()
    }
    for part in ("visual.trunk", "visual.head", "text.transformer", "text.proj"):
        changes = torch.stack([change for name, change in moved.items() if name.startswith(part)])
        assert changes.max() > 0
    # 4 steps of 1e-3
    assert (
        max(change for name, change in moved.items() if not name.endswith(("mean", "var"))) < 0.05
    )


def test_words_and_evaluate_open_the_run(trained, tmp_path, monkeypatch):
    checkpoint = trained / "logs/run/checkpoints/epoch_1.pt"
    execute(f"words {trained}/images --model {checkpoint} --out {tmp_path}/words")
    assert (tmp_path / "words/index.html").exists()
    write_colours(tmp_path / "data/colours")
    monkeypatch.chdir(tmp_path)
    assert evaluate(f"{checkpoint} {trained}/start --data data --datasets wds/colours") == 0
