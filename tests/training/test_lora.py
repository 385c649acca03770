"""examples/open_clip_lora trains adapters alone, resumes exactly, and saves
merged weights."""

import copy
import functools
import sys

import open_clip
import pytest
import torch
from support import cases, parametrize, refusals, table
from support.models import assert_equal, random_weights
from support.plugins import EXAMPLES, pip_install
from support.training_runs import (
    assert_resumes,
    call,
    completed,
    error_of,
    load,
    train_with,
    write_two_towers,
)

from openclip_superclip.method.head import vocabulary_size

sys.path.append(str(EXAMPLES / "open_clip_lora"))

from open_clip_lora_layers import add_adapters, layers_to_adapt, save_merged_weights
from peft.tuners.lora import Linear

SAVED = "training_only_lora."
ADAPTED = "vit custom-block attentional-pool timm-vit timm-vit-map timm-convnext".split()


@pytest.fixture
def lora_args(parse_args):
    """OpenCLIP's arguments of a run with adapters."""

    def lora_args(model, towers="both", rank=2):
        args = parse_args(["--model", model])
        args.lora, args.lora_towers = rank, towers
        return args

    return lora_args


def adapted(args, seed=None):
    """Returns a model of random weights with adapters, which are those of a
    trained model unless the seed is None."""
    model = open_clip.create_model(args.model, load_weights=False, pretrained_text=False)
    model.load_state_dict(random_weights(args.model))
    torch.manual_seed(seed or 0)
    add_adapters(model, layers_to_adapt(args), args.lora)
    if seed is not None:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    save_merged_weights(model, lambda state: None)
    return model


def batch(model):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(
        4, 3, *open_clip.utils.to_2tuple(model.visual.image_size), generator=generator
    )
    tokens = torch.randint(1, vocabulary_size(model), (4, 20), generator=generator)
    return images, tokens


def stock(args, weights):
    """Returns stock OpenCLIP's model with the weights of a checkpoint that
    are not for resuming."""
    model = open_clip.create_model(args.model, load_weights=False, pretrained_text=False)
    plain = {name: value for name, value in weights.items() if not name.startswith(SAVED)}
    model.load_state_dict(plain)
    return model


each_tower = parametrize("name", [*ADAPTED, "hf-text"])


@each_tower
def test_new_adapters_change_no_bit_of_the_features(name, models, lora_args):
    args = lora_args(models[name])
    model = adapted(args).eval()
    plain = stock(args, random_weights(args.model)).eval()
    plain.requires_grad_(False)  # torch multiplies by a trained weight in another order
    images, tokens = batch(plain)
    with torch.no_grad():
        assert_equal(model(images, tokens), plain(images, tokens))


@each_tower
def test_the_saved_weights_are_merged_and_give_the_features_of_the_adapters(
    name, models, lora_args
):
    args = lora_args(models[name])
    model = adapted(args, seed=1).eval()
    plain = stock(args, model.state_dict()).eval()
    fresh = stock(args, random_weights(args.model)).eval()
    images, tokens = batch(plain)
    with torch.no_grad():
        outputs = [one(images, tokens) for one in (model, plain, fresh)]
    for ours, merged, without in zip(*(output[:2] for output in outputs), strict=True):
        torch.testing.assert_close(ours, merged, rtol=1e-4, atol=1e-5)
        assert (ours - without).abs().max() > 1e-3
    for layer in [layer for layer in model.modules() if isinstance(layer, Linear)]:
        layer.merge()  # as peft merges
        assert any(torch.equal(layer.weight, weight) for weight in plain.parameters())


@each_tower
def test_every_adapter_and_the_projections_are_trained_and_nothing_else_of_the_towers(
    name, models, lora_args
):
    args = lora_args(models[name])
    model = adapted(args, seed=1).train()
    image, text, *_ = model(*batch(model))
    (image.sum() + text.sum() + model.logit_scale).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    others = {name for name in trained if "lora_" not in name}
    image_projection = "visual.head.proj.weight" if name.startswith("timm") else "visual.proj"
    text_projection = {"text_projection"}
    if name == "hf-text":
        text_projection = {"text.proj.0.weight", "text.proj.2.weight"}
    assert others == {image_projection, "logit_scale"} | text_projection
    without_gradient = []
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.grad.abs().max() > 0:
            without_gradient.append(parameter_name)
    assert without_gradient == []


def test_the_base_weights_and_batch_norm_statistics_do_not_change_in_training(models, lora_args):
    model = adapted(lora_args(models["timm-resnet"], "text"), seed=1)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    for _ in range(3):
        image, text, *_ = model.train()(*batch(model))
        (image.sum() + text.sum()).backward()
        optimizer.step()
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    in_image_tower = {name for name in changed if name.startswith("visual.")}
    assert in_image_tower == {"visual.head.proj.weight"}
    base = {name for name in before if name.startswith(SAVED) and "lora_" not in name}
    assert base
    assert not changed & base
    assert "transformer.resblocks.0.mlp.c_fc.weight" in changed


# Training


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """`superclip train` in a process with the plugin, installed by pip from
    its pyproject.toml."""
    folder = pip_install(tmp_path_factory.mktemp("site-packages"), "open_clip_lora")
    return functools.partial(train_with, folder)


@pytest.fixture(scope="module")
def flags(short_run, teacher):
    """Flags of a run that starts from weights."""
    return f"{short_run} --model {teacher} --precision fp32"


@cases("more, world_size", {"alone": ("", 1), "two ranks with SuperCLIP": ("--superclip", 2)})
def test_a_resumed_run_ends_where_one_that_never_stopped_ends(
    more, world_size, train, flags, shards, tmp_path
):
    data = f"--dataset-type webdataset --train-data {shards} --train-num-samples 64"
    in_slices = f"--superclip-slices 1 --batch-size {16 // world_size}"
    argv = f"{flags} --lora 4 {data} {in_slices} {more}"
    assert_resumes(train, argv, folder=tmp_path, world_size=world_size)


@parametrize("more", ["--siglip", "--precision amp_bf16 --grad-checkpointing --accum-freq 2"])
def test_adapters_train_with_other_options_of_openclip(more, train, flags, tmp_path):
    completed(train, flags, "--lora 4", more, cwd=tmp_path)
    saved = load(tmp_path / "logs/run")["state_dict"]
    trained = {name: weight for name, weight in saved.items() if "lora_B" in name}
    assert len(trained) == 16
    assert all(weight.abs().max() > 0 for weight in trained.values())


@pytest.fixture(scope="module")
def run(train, flags, tmp_path_factory):
    """The folder of a run with adapters and a class head."""
    folder = tmp_path_factory.mktemp("run")
    (done,) = completed(train, flags, "--lora 4 --superclip", cwd=folder)
    assert "LoRA: adapters of rank 4 in 12 layers; " in done.output
    return folder / "logs/run"


def test_without_the_plugin_words_opens_the_run_and_its_export_has_the_merged_weights(
    run, teacher, csv_data, tmp_path
):
    assert call(f"words {csv_data.parent} --model {run} --out {tmp_path}/words") == 0
    assert call(f"export {run} --out {tmp_path}/merged") == 0
    saved = load(run)["state_dict"]
    exported = open_clip.create_model(f"local-dir:{tmp_path}/merged").eval()
    merged = exported.state_dict()
    assert_equal(merged, {name: saved[name] for name in merged})
    start = open_clip.create_model(teacher).state_dict()
    changed = {name for name, weight in start.items() if not torch.equal(weight, saved[name])}
    adapted_weights = (".in_proj_weight", ".out_proj.weight", ".c_fc.weight", ".c_proj.weight")
    weights = {name for name in start if name.endswith(adapted_weights)}
    assert changed == weights | {"visual.proj", "text_projection", "logit_scale"}


def test_adapters_of_the_text_tower_alone_are_warned_of(train, tmp_path):
    flags = f"{write_two_towers(tmp_path)} --lora 2 --lora-towers text"
    (done,) = completed(train, flags, cwd=tmp_path)
    assert "the image tower is frozen, so the class loss trains only its head" in done.output


@parametrize("name", ["resnet", "timm-resnet", "timm-efficientnet", "timm-attn-pool"])
def test_a_tower_without_layers_for_adapters_is_one_line_and_nothing_is_written(
    name, models, train, short_run, tmp_path
):
    error = error_of(train, short_run, f"--model {models[name]} --lora 4", cwd=tmp_path)
    assert error == (
        f"error: --lora: the image tower of {models[name]} has no attention or linear layers for "
        "adapters: give --lora-towers text, or train without --lora"
    )
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".txt"]


@cases("more, message", refusals("lora"))
def test_flags_that_do_not_work_together_are_one_line(more, message, train, short_run, tmp_path):
    assert message in error_of(train, short_run, more, cwd=tmp_path)
    assert not (tmp_path / "logs").exists()


@cases("more, message", table("training: adapters of a checkpoint"))
def test_a_checkpoint_resumes_with_the_adapters_it_began_with(
    more, message, run, train, flags, tmp_path
):
    resumed = f"--superclip --epochs 2 {more.format(run=run)}"
    assert message in error_of(train, flags, resumed, cwd=tmp_path)
