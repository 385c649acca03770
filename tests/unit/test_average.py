"""Averages of checkpoints, and interpolation between released and fine-tuned weights."""

import shutil

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import cases, parametrize
from support.models import add_to_cache, random_weights, write_model
from support.training_runs import execute

import openclip_superclip as superclip
from openclip_superclip.checkpoints.weights import save_weights


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three checkpoints of a small ResNet with a class head, after 10, 20 and 30 captions, and a
    plain one."""
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
    for name, other in {
        "nan": scale * float("nan"),
        "whole": torch.tensor(2),
        "array": scale.view(1),
    }.items():
        old = {"text.transformer.embeddings.position_ids": scale, "logit_scale": other}
        torch.save(state | old, folder / f"{name}.pt")
    for name, reads in {"pooled": 1, "both": 2}.items():
        torch.save(state | {"class_head.input": torch.tensor(reads)}, folder / f"{name}.pt")
        save_weights(
            state, folder / f"of_{name}.pt", {"model": model, "force_quick_gelu": reads == 2}
        )
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


@parametrize(
    "argv, weights, counts",
    [
        ("average 2.pt 2.pt", "2.pt", "2.pt"),
        ("average 3.pt array.pt", "3.pt", "3.pt"),  # OpenCLIP ignores the position_ids of array.pt
        ("interpolate 1.pt 2.pt --alpha 0", "1.pt", "2.pt"),
        ("interpolate 1.pt 2.pt --alpha 1", "2.pt", "2.pt"),
        # without the head
        ("interpolate 2.pt plain.safetensors --alpha 1", "plain.safetensors", "plain.safetensors"),
    ],
)
def test_averages_of_equals_and_ends_of_interpolations_are_exact(
    argv, weights, counts, files, tmp_path, monkeypatch
):
    monkeypatch.chdir(files)
    execute(f"{argv} --out {tmp_path}/out.pt")
    out, floats, others = (
        state(file) for file in (tmp_path / "out.pt", files / weights, files / counts)
    )
    assert out.keys() == others.keys()
    assert all(
        torch.equal(t, (floats if t.is_floating_point() else others)[name])
        for name, t in out.items()
    )


def test_an_interpolation_takes_the_head_of_the_tuned_model(files, tmp_path, monkeypatch):
    """MODEL:TAG names released weights, here from a cache like that of a download."""
    shutil.copy(files / "plain.safetensors", tmp_path / "open_clip_model.safetensors")
    add_to_cache(tmp_path / "cache", "someone/model", tmp_path / "open_clip_model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", f"{tmp_path}/cache")
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED, "tiny", {"ours": {"hf_hub": "someone/model/"}}
    )
    execute(f"interpolate tiny:ours {files}/2.pt --alpha 0.25 --out {tmp_path}/out.pt")
    out, plain, tuned = (
        state(tmp_path / "out.pt"),
        state(files / "plain.safetensors"),
        state(files / "2.pt"),
    )
    assert out.keys() == tuned.keys()
    for name, tensor in out.items():
        if name in plain and tensor.is_floating_point():
            torch.testing.assert_close(tensor, 0.75 * plain[name] + 0.25 * tuned[name])
        else:
            assert torch.equal(tensor, tuned[name])


REFUSED = {
    "average 1.pt --out x.pt": "only one checkpoint is given",
    "average 1.pt plain.safetensors --out x.pt": (
        "plain.safetensors does not match 1.pt: class_head.bias is missing"
    ),
    "average 1.pt 2.pt --out 3.pt": "--out: 3.pt exists",
    "average 1.pt 2.pt --out mean.npz": "--out is mean.npz; expected .safetensors: OpenCLIP reads",
    "average 1.pt nan.pt --out x.pt": "nan.pt: logit_scale contains NaN or infinity",
    "average 1.pt whole.pt --out x.pt": "logit_scale is torch.int64, expected torch.float32",
    "average pooled.pt both.pt --out x.pt": "its class head's input is both, expected pooled",
    "average of_pooled.pt of_both.pt --out x.pt": "its quick_gelu is True, expected False",
    "average 1.pt 2.pt --out 1.pt --overwrite": (
        "1.pt is, contains or is in 1.pt, which is an input"
    ),
    "average 1.pt model --out model/open_clip_config.json --overwrite": (
        "or is in model, which is an input"
    ),
    "average 1.pt 2.pt --out model --overwrite": "model is a folder; expected the name of a file",
    "interpolate ViT-B-32:laion2b_s34b_b79k 2.pt --alpha 5 --out x.pt": (
        "--alpha is 5.0; expected 0"
    ),
    "interpolate local-dir:model 1.pt --out x.pt": "error: model contains no weights",
    "interpolate ViT-B-32:laion2b_s34b_b79k 2.pt --out x.pt": "cannot be downloaded or read",
}


@cases("argv, reason", REFUSED)
def test_impossible_averages_are_refused_in_one_line_and_nothing_is_written(
    argv, reason, files, refused
):
    assert reason in refused(files, argv)
