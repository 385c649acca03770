"""A model of two joined towers is accepted by every command: train, plan, study, words, audit,
evaluate and export."""

from pathlib import Path

import open_clip
import pytest
import torch
from support.data import write_colours, write_images, write_table
from support.models import write_bert, write_image_tower
from support.training_runs import call, completed, superclip_train


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with two joined towers, `start`, a table, and the run `logs/run` that was trained
    from them."""
    folder = tmp_path_factory.mktemp("joined")
    write_image_tower(folder / "image.pth")
    write_bert(folder / "text")
    image = f"timm:test_efficientnet={folder}/image.pth"
    options = ["--embed-dim", 16, "--image-size", 32]
    assert (
        call(
            "join", "--image", image, "--text", folder / "text", "--out", folder / "start", *options
        )
        == 0
    )
    write_table(folder / "pairs.csv", write_images(folder / "images", 64, seed=0))
    flags = (
        "--superclip --model local-dir:start --train-data pairs.csv --csv-separator , "
        "--csv-img-key image"
    )
    flags += (
        " --csv-caption-key caption --batch-size 16 --epochs 1 --workers 0 --lr 1e-3 "
        "--warmup 1 --device cpu"
    )
    flags += " --precision fp32 --name run"
    completed(superclip_train, *flags.split(), cwd=folder)
    return folder


def test_training_starts_from_both_towers_and_the_export_opens_in_stock_openclip(trained, tmp_path):
    checkpoint = trained / "logs/run/checkpoints/epoch_1.pt"
    assert call("export", checkpoint, "--out", tmp_path / "exported") == 0
    start, end = (
        open_clip.create_model(f"local-dir:{folder}").state_dict()
        for folder in (
            trained / "start",
            tmp_path / "exported",
        )
    )
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


def test_words_audit_and_evaluate_open_the_run(trained, tmp_path, monkeypatch, capsys):
    checkpoint = trained / "logs/run/checkpoints/epoch_1.pt"
    assert (
        call("words", trained / "images", "--model", checkpoint, "--out", tmp_path / "words") == 0
    )
    assert (tmp_path / "words/index.html").exists()
    audit = [
        "audit",
        trained / "pairs.csv",
        "--model",
        checkpoint,
        "--out",
        tmp_path / "audit",
        "--device",
        "cpu",
    ]
    assert call(*audit) == 0
    assert any((tmp_path / "audit").iterdir())
    write_colours(tmp_path / "data/colours")
    monkeypatch.chdir(tmp_path)
    evaluate = [
        "evaluate",
        checkpoint,
        trained / "start",
        "--data",
        "data",
        "--datasets",
        "wds/colours",
    ]
    assert call(*evaluate, "--device", "cpu", "--workers", 0) == 0


def test_plan_and_study_accept_the_folder(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    recipe = "own_data/superclip_vit-ti-16-96_60k_bs64"
    changes = [
        "--set",
        "model=local-dir:start",
        "--set",
        "global_batch_size=16",
        "--set",
        "samples=1 passes",
    ]
    assert call("plan", recipe, "--data", "pairs.csv", "--device", "cpu", *changes) == 0
    study = [
        "study",
        "own_data",
        "--data",
        "pairs.csv",
        "--val-data",
        "pairs.csv",
        "--out",
        "answer",
        "--dry-run",
    ]
    assert call(*study, *changes) == 0
    assert "local-dir:start" in capsys.readouterr().out
