"""Averages of checkpoints, also of released and fine-tuned ones."""

import shutil

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import cases, parametrize, read_json, refusals, table
from support.models import add_to_cache, assert_equal, random_weights, write_model
from support.training_runs import execute

import openclip_superclip as superclip
from openclip_superclip.checkpoints.weights import save_weights


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three checkpoints of a small ResNet with a class head, after 10, 20
    and 30 captions, and a plain one."""
    folder = tmp_path_factory.mktemp("checkpoints")
    model = write_model(
        folder / "model",
        vision={"layers": [1, 1, 1, 1], "width": 8},
        text={"vocab_size": 500, "layers": 1},
    )
    for number in (1, 2, 3):
        torch.manual_seed(number)
        state = superclip.create_model_and_transforms(model)[0].state_dict()
        state["statistics.num_captions"].fill_(10 * number)
        state["statistics.document_frequency"].fill_(number)
        state["visual.bn1.num_batches_tracked"].fill_(number)
        content = {"epoch": number, "state_dict": {f"module.{k}": v for k, v in state.items()}}
        torch.save(content, folder / f"{number}.pt")
    scale = state["logit_scale"]
    scales = {"nan": scale * float("nan"), "whole": torch.tensor(2), "array": scale.view(1)}
    for name, other in scales.items():
        old = {"text.transformer.embeddings.position_ids": scale, "logit_scale": other}
        torch.save(state | old, folder / f"{name}.pt")
    torch.save(state | {"class_head.input": torch.tensor(1)}, folder / "pooled.pt")
    for name in ("plain", "quick"):
        options = {"model": model, "force_quick_gelu": name == "quick"}
        save_weights(state, folder / f"of_{name}.pt", options)
    save_file(random_weights(model), folder / "plain.safetensors")
    return folder


def state(file):
    if file.suffix == ".safetensors":
        return load_file(file)
    content = torch.load(file, weights_only=True)
    return {k.removeprefix("module."): v for k, v in content.get("state_dict", content).items()}


@parametrize("suffix", [".pt", ".safetensors"])
def test_an_average_is_the_mean_of_the_weights_and_the_counts_of_the_longest_run(
    suffix, files, tmp_path
):
    out = tmp_path / f"mean{suffix}"
    execute(f"average {files}/1.pt {files}/2.pt --out {out}")
    execute(f"average {files}/1.pt {files}/3.pt {files}/2.pt --out {out} --overwrite")
    assert list(tmp_path.iterdir()) == [out]
    mean, parts = state(out), [state(files / f"{number}.pt") for number in (1, 2, 3)]
    assert mean.keys() == parts[0].keys()
    for name, tensor in mean.items():
        if tensor.is_floating_point():
            expected = torch.stack([part[name].double() for part in parts]).mean(dim=0)
            torch.testing.assert_close(tensor.double(), expected, atol=1e-7, rtol=1e-6)
            assert tensor.dtype == parts[0][name].dtype
        else:
            assert torch.equal(tensor, parts[2][name]), name
    assert mean["statistics.num_captions"] == 30


@cases("argv, weights, counts", table("losses: exact averages"))
def test_averages_of_equals_and_weights_of_one_and_zero_are_exact(
    argv, weights, counts, files, tmp_path, monkeypatch
):
    monkeypatch.chdir(files)
    execute(f"{argv} --out {tmp_path}/out.pt")
    floats, expected = state(files / weights), state(files / counts)
    expected |= {name: t for name, t in floats.items() if t.is_floating_point()}
    assert_equal(state(tmp_path / "out.pt"), expected)


def test_an_average_with_released_weights_takes_the_head_of_the_tuned_ones(
    files, tmp_path, monkeypatch
):
    """MODEL:TAG names released weights, here from a cache like that of a
    download."""
    shutil.copy(files / "plain.safetensors", tmp_path / "open_clip_model.safetensors")
    add_to_cache(tmp_path / "cache", "someone/model", tmp_path / "open_clip_model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", f"{tmp_path}/cache")
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED, "tiny", {"ours": {"hf_hub": "someone/model/"}}
    )
    execute(f"average --weights 0.75 0.25 tiny:ours {files}/2.pt --out {tmp_path}/out.pt")
    expected = state(files / "2.pt")
    for name, tensor in state(files / "plain.safetensors").items():
        if tensor.is_floating_point():
            expected[name] = 0.75 * tensor + 0.25 * expected[name]
    torch.testing.assert_close(state(tmp_path / "out.pt"), expected)


def test_released_weights_with_and_without_quick_gelu_are_not_averaged(
    files, tmp_path, monkeypatch, refused
):
    model_cfg = read_json(files / "model/open_clip_config.json")["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", model_cfg)
    of_tag = {"file": str(files / "plain.safetensors")}
    tags = {"plain": of_tag, "other": of_tag, "quick": {**of_tag, "quick_gelu": True}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", tags)
    message = refused(files, f"average tiny:plain tiny:quick --out {tmp_path}/out.pt")
    assert "its quick_gelu is True, expected False" in message
    execute(f"average tiny:plain tiny:other --out {tmp_path}/out.pt")
    expected = state(files / "plain.safetensors")
    torch.testing.assert_close(state(tmp_path / "out.pt"), expected)


@cases("argv, reason", refusals("average"))
def test_impossible_averages_are_refused_in_one_line_and_nothing_is_written(
    argv, reason, files, refused
):
    assert reason in refused(files, argv)
