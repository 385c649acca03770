"""The small models of this package, and models in JSON files."""

import json
import shutil
from pathlib import Path

import open_clip
import pytest

import openclip_superclip as superclip
from openclip_superclip.__main__ import main
from openclip_superclip.checkpoints.architecture import architecture_of, read_architecture
from openclip_superclip.checkpoints.model_files import CONFIGURATIONS


@pytest.fixture
def model_file(tiny_model, tmp_path):
    """A model configuration in another folder."""
    content = json.loads(Path(tiny_model.removeprefix("local-dir:"), "open_clip_config.json").read_text())
    file = tmp_path / "models" / "my_model.json"
    file.parent.mkdir()
    file.write_text(json.dumps(content["model_cfg"]))
    return file


def test_a_small_vit_and_a_small_resnet_ship_and_are_known_by_their_names(csv_data, parse_args):
    shipped = [file.stem for file in CONFIGURATIONS.glob("*.json")]
    for name in shipped:
        assert parse_args(["--superclip", "--model", name, "--train-data", str(csv_data)]).model == name
    assert {type(read_architecture(name).model_cfg["vision_cfg"]["layers"]) for name in shipped} == {int, list}


def test_a_file_can_be_given_as_every_model(model_file, csv_data, parse_args, monkeypatch, capsys):
    monkeypatch.chdir(model_file.parent.parent)
    name = "models/my_model.json"
    assert parse_args(["--superclip", "--model", name, "--train-data", str(csv_data)]).model == name
    model, *_ = superclip.create_model_and_transforms(name)
    assert model.class_head
    assert open_clip.get_tokenizer(name).context_length == model.context_length
    assert main(["plan", "demo/superclip_demo-model_8k_bs64", "--device", "cpu", "--set", f"model={name}"]) == 0
    assert name in capsys.readouterr().out
    run = model_file.parent.parent / "logs/run/checkpoints/epoch_1.pt"
    monkeypatch.chdir("/")  # the run's model is found from any working directory
    found = architecture_of(run, {"model": name, "logs": "logs", "name": "run"})
    assert found.model_cfg["embed_dim"] == 32


def test_a_runs_relative_model_is_found_in_the_folder_of_its_training(tiny_model, tmp_path):
    there = tmp_path / "there"
    shutil.copytree(tiny_model.removeprefix("local-dir:"), there / "model")
    options = {"model": "local-dir:model", "logs": "logs", "name": "run"}
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/run.json").write_text(json.dumps({"cwd": str(there)}))
    checkpoints = [run / "checkpoints/epoch_1.pt" for run in (there / "logs/run", tmp_path / "copy")]
    for checkpoint in checkpoints:
        assert architecture_of(checkpoint, options).name == f"local-dir:{there}/model"
    shutil.rmtree(there / "model")
    with pytest.raises(superclip.InputError, match=f"which is not at {there}/model: give --model"):
        architecture_of(checkpoints[0], options)


def test_preprocessing_that_training_would_ignore_is_refused(model_file, csv_data, parse_args, refusal):
    content = {"model_cfg": json.loads(model_file.read_text()), "preprocess_cfg": {"mean": [0, 0, 0]}}
    model_file.write_text(json.dumps(content))
    argv = ["--superclip", "--model", str(model_file), "--train-data", str(csv_data)]
    assert "contains a preprocess_cfg, " in refusal(*argv)
    content["preprocess_cfg"] = {"size": 32, "mean": open_clip.OPENAI_DATASET_MEAN, "resize_mode": "shortest"}
    model_file.write_text(json.dumps(content))  # the defaults, as in an export
    assert parse_args(argv).superclip
