"""Training names the weights that it starts from, and refuses those that it
cannot use, before the first batch."""

import math

import numpy as np
import open_clip
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from support import input_error, parametrize
from support.models import (
    MODELS,
    assert_equal,
    copy_model,
    random_weights,
    write_hf_text_model,
    write_model,
    write_weights,
)
from support.tiny_run import write_recipe
from support.training_runs import error_of, execute, run_ranks, superclip_train
from torch.distributed.fsdp import fully_shard

import openclip_superclip as superclip
from openclip_superclip.checkpoints.architecture import read_architecture
from openclip_superclip.checkpoints.starting_weights import start_of_towers
from openclip_superclip.method.finite_weights import is_finite_on_all_ranks

BAD = "contains NaN or infinity"


def with_one(value, weights):
    """Returns weights with one value replaced."""
    name = "visual.proj" if "visual.proj" in weights else next(iter(weights))
    changed = weights[name].clone()
    changed.view(-1)[3] = value
    return {**weights, name: changed}


# Weights and sizes that do not fit the model


@parametrize("flags", ["--superclip", "--superclip --val-fraction 0.2"])
def test_weights_of_another_model_are_refused_before_anything_is_written(
    flags, small_model, short_run, refusal, tmp_path
):
    wider = write_model(tmp_path / "wider", text={"width": 16, "heads": 2})
    torch.save(random_weights(wider), "weights.pt")
    error = refusal(short_run, f"--model {small_model} --pretrained weights.pt", flags)
    assert error.startswith(f"error: --pretrained: weights.pt is not of {small_model}, or dam")
    assert "size mismatch for" in error
    assert {path.name for path in tmp_path.iterdir()} == {"weights.pt", "wider"}


def test_a_run_of_weights_of_another_model_is_refused_before_anything_is_written(
    tiny_model, refused, tmp_path
):
    recipe = write_recipe(tmp_path / "recipe", method="clip", model="ViT-Ti-16-96")
    weights = tmp_path / "weights.pt"
    torch.save(random_weights(tiny_model), weights)
    for command in ("run", "plan"):
        flags = f"--device cpu --set flags.pretrained={weights}"
        line = refused(tmp_path, f"{command} {recipe} {flags}")
        assert line.startswith(f"error: --pretrained: {weights} is not of ViT-Ti-16-96, or dam")


def test_weights_that_openclip_resizes_are_accepted(small_model, short_run, parse_args, tmp_path):
    torch.save(random_weights(small_model), tmp_path / "weights.pt")
    flags = f"--superclip --model {small_model} --pretrained {tmp_path}/weights.pt"
    sizes = "--force-image-size 48 --force-context-length 12 --force-custom-text"
    assert parse_args(f"{short_run} {flags} {sizes}".split()).force_image_size == [48]


@parametrize("size", [4, -32])
@parametrize("flag", ["--force-image-size", "--model"])
def test_a_size_that_the_image_tower_cannot_take_is_refused(
    size, flag, short_run, refusal, tmp_path
):
    model = write_model(tmp_path, vision={"image_size": size} if flag == "--model" else {})
    flags = f"{flag} {size}" if flag == "--force-image-size" else ""
    error = refusal(short_run, f"--superclip --model {model} {flags}")
    expected = f"error: {flag}: the image tower of {model} cannot take images of ({size}"
    assert error.startswith((expected, f"error: --model: OpenCLIP cannot build {model} ("))


# Weights with NaN or infinity


@parametrize("suffix", [".pt", ".safetensors", ".npz"])
@parametrize("value", [math.nan, -math.inf])
def test_a_file_with_a_non_finite_value_is_refused_before_anything_is_loaded(
    value, suffix, small_model, short_run, refusal, tmp_path
):
    weights, file = with_one(value, random_weights(small_model)), tmp_path / f"weights{suffix}"
    if suffix == ".npz":
        np.savez(file, **{name: tensor.numpy() for name, tensor in weights.items()})
    else:
        (save_file if suffix == ".safetensors" else torch.save)(weights, file)
    error = refusal(short_run, f"--superclip --model {small_model} --pretrained {file}")
    assert error.startswith(f"error: --pretrained: {file}: visual.proj {BAD}")


def test_a_folder_or_a_resumed_checkpoint_with_nan_is_refused(
    small_model, short_run, refusal, tmp_path
):
    copy_model(small_model, folder := tmp_path / "model")
    weights = superclip.create_model_and_transforms(small_model)[0].state_dict()
    bad = with_one(math.nan, weights)
    torch.save({"epoch": 1, "state_dict": bad}, tmp_path / "epoch_1.pt")
    resumed = refusal(
        short_run, f"--superclip --model {small_model} --resume {tmp_path}/epoch_1.pt"
    )
    assert resumed.startswith(f"error: --resume: {tmp_path}/epoch_1.pt: visual.proj {BAD}")
    save_file(bad, folder / "open_clip_model.safetensors")
    opened = refusal(short_run, f"--superclip --model local-dir:{folder}")
    assert opened.startswith(
        f"error: --model: {folder}/open_clip_model.safetensors: visual.proj {BAD}"
    )


def test_weights_that_no_check_has_read_are_refused_when_they_are_loaded(small_model):
    model, *_ = superclip.create_model_and_transforms(small_model)
    state = model.state_dict()
    model.load_state_dict(state)
    with input_error(r"visual\.proj of the weights contains NaN or infinity"):
        model.load_state_dict(with_one(math.nan, state))


# The check at the end of an epoch


def sharded_check():
    """Prints whether a sharded model is finite, before and after one rank's
    shard of one weight is not."""
    dist.init_process_group("gloo")
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (2,)))
    print(is_finite_on_all_ranks(model, "cpu"), flush=True)
    if dist.get_rank() == 1:
        model[0].weight.to_local().data.fill_(math.nan)
    print(is_finite_on_all_ranks(model, "cpu"), flush=True)
    dist.destroy_process_group()


def test_all_ranks_decide_together_if_only_one_has_the_shard_that_is_not_finite(tmp_path):
    runs = run_ranks(sharded_check, world_size=2, cwd=tmp_path)
    assert [run.returncode for run in runs] == [0, 0], runs[0].output
    assert [run.output.split()[-2:] for run in runs] == 2 * [["True", "False"]]


# What the towers start from


def test_a_moved_text_tower_is_exported_to_a_folder_that_openclip_opens_and_not_trained(
    tmp_path, refusal, csv_data
):
    model = write_hf_text_model(tmp_path / "model")
    write_weights(model)
    execute(f"export {tmp_path}/model --out {tmp_path}/start")
    moved = (tmp_path / "start").rename(tmp_path / "moved")
    line = refusal(f"--superclip --model local-dir:{moved} --train-data {csv_data}")
    assert f"--model: {moved} was written as {tmp_path}/start and has been moved or copied" in line
    execute(f"export {moved} --out {tmp_path}/again")
    opened = open_clip.create_model(f"local-dir:{tmp_path}/again")
    weights = open_clip.factory.load_state_dict(f"{moved}/open_clip_model.safetensors")
    assert_equal(opened.state_dict(), weights)


def test_each_tower_has_a_start(tiny_model, tmp_path):
    timm = write_model(tmp_path / "timm", **MODELS["timm-vit"])
    hugging_face, tower = write_hf_text_model(tmp_path / "hf"), f"{tmp_path}/hf/tower"
    starts = {  # model, --pretrained, --pretrained-image: the start
        (tiny_model, None, False): "random weights (image) and random weights (text)",
        (timm, None, True): "timm's test_vit (image) and random weights (text)",
        (hugging_face, None, False): f"random weights (image) and {tower} (text)",
        ("ViT-B-32", "openai", False): "openai",
        (hugging_face, "weights.pt", False): "weights.pt",
    }
    found = {
        row: start_of_towers(read_architecture(row[0]), row[1], pretrained_image=row[2])
        for row in starts
    }
    assert found == starts
    write_weights(timm)
    found = start_of_towers(read_architecture(timm), None, pretrained_image=False)
    assert found == f"{tmp_path}/timm/pytorch_model.bin"


def test_weights_of_timm_that_openclip_would_not_load_are_refused(short_run, refusal, tmp_path):
    vision = {**MODELS["timm-vit"]["vision"], "timm_model_pretrained": True}
    model = write_model(tmp_path, vision=vision)
    error = refusal(short_run, f"--superclip --model {model}")
    assert error.startswith(
        f"error: --model: {model} contains timm_model_pretrained: true, which OpenCLIP ignores"
    )
    assert "add --pretrained-image" in error


@parametrize("tower", ["image", "text"])
def test_a_towers_own_weights_that_cannot_be_loaded_are_one_error(tower, short_run, tmp_path):
    if tower == "image":  # without a network
        flags = f"--pretrained-image --model {write_model(tmp_path / 'm', **MODELS['timm-vit'])}"
    else:
        flags = f"--model {write_hf_text_model(tmp_path / 'm')}"
        (tmp_path / "m/tower/model.safetensors").unlink()
    error = error_of(superclip_train, short_run, "--superclip", flags, cwd=tmp_path)
    assert "error: a tower's own weights cannot be loaded (" in error
    assert not (tmp_path / "logs").exists()
