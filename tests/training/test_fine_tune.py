"""Released weights of every kind start a SuperCLIP run bit-equal, with a fresh head or the one that they bring."""

import itertools
import json
import logging
import re
import shutil
import zipfile

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from support.models import write_model
from support.released_models import (
    FULL_SHAPES,
    add_to_cache,
    random_weights,
    write_hf_text_model,
    write_tokenizer,
)
from support.training_runs import run_ranks, stock_train, superclip_train

import openclip_superclip as superclip
from openclip_superclip.__main__ import main
from openclip_superclip.checkpoints.checkpoint import is_torchscript

NAME = "tiny-for-fine-tuning"
FRESH = "SuperCLIP: the weights contain no class head; training starts with a new one"
SMALL = {"vision": {"width": 16, "head_width": 16}, "text": {"width": 12, "vocab_size": 49408}}
CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 12, "heads": 3, "layers": 2},
}


@pytest.fixture(autouse=True)
def tiny_configuration(monkeypatch):
    """Small models under names, as OpenCLIP's own are: --pretrained works with names alone."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, NAME, CONFIG)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, f"{NAME}-quickgelu", {**CONFIG, "quick_gelu": True})
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def small_flags(train_flags, tmp_path_factory):
    """Flags of a short run of a model whose head is small."""
    return [*train_flags, "--model", write_model(tmp_path_factory.mktemp("small"), **SMALL)]


def assert_fresh_head(model):
    """The head holds what a new one does: rows of the right spread, no bias, and nothing counted."""
    head, width = model.class_head, model.patch_tokens.width
    assert head.weight.std().item() == pytest.approx(width**-0.5, rel=0.05)
    assert not head.bias.any()
    assert model.statistics.num_captions == 0


def assert_holds(model, weights):
    state = model.state_dict()
    assert {k for k in state if not k.startswith(("class_head.", "statistics."))} == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(state[name], tensor.to(state[name].dtype)), name


# Full shapes: each model in another kind of place.


def as_a_released_tag(weights, folder, model_name):
    tag = {"ViT-B-32": "laion2b_s34b_b79k", "ViT-B-16-SigLIP": "webli"}[model_name]
    repo, _ = open_clip.get_pretrained_cfg(model_name, tag)["hf_hub"].rsplit("/", 1)
    save_file(weights, folder / "open_clip_model.safetensors")
    add_to_cache(folder / "cache", repo, folder / "open_clip_model.safetensors", *write_tokenizer(folder / "words"))
    return model_name, tag


def as_a_file(suffix, wrap=dict):
    def write(weights, folder, model_name):
        file = folder / f"weights{suffix}"
        (save_file if suffix == ".safetensors" else torch.save)(wrap(weights), file)
        return model_name, str(file)

    return write


def as_a_training_run_saves(prefix):
    return lambda weights: {"epoch": 32, "state_dict": {prefix + name: v for name, v in weights.items()}}


def as_a_folder(weights, folder, model_name):
    config = {"model_cfg": open_clip.get_model_config(model_name), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(weights, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}", None


def as_a_hub_repository(weights, folder, model_name):
    as_a_folder(weights, folder, model_name)
    files = [folder / "open_clip_config.json", folder / "open_clip_model.safetensors"]
    add_to_cache(folder / "cache", "someone/model", *files)
    return "hf-hub:someone/model", None


KINDS = {
    "ViT-B-32": as_a_released_tag,
    "ViT-B-16-quickgelu": as_a_file(".bin"),
    "RN50": as_a_file(".pt", as_a_training_run_saves("module.")),
    "convnext_base": as_a_hub_repository,
    "vit_medium_patch16_gap_256": as_a_folder,
    "ViT-B-16-SigLIP": as_a_released_tag,
}


@pytest.mark.parametrize("model_name", FULL_SHAPES)
def test_released_shapes_load_bit_equal_beside_a_fresh_head(model_name, tmp_path, caplog):
    weights = random_weights(model_name)
    model, pretrained = KINDS[model_name](weights, tmp_path, model_name)
    with caplog.at_level(logging.INFO):
        model, *_ = superclip.create_model_and_transforms(model, pretrained, cache_dir=str(tmp_path / "cache"))
    shutil.rmtree(tmp_path)
    assert_holds(model, weights)
    assert_fresh_head(model)
    assert caplog.messages.count(FRESH) == 1


def test_a_hugging_face_text_tower_built_from_a_configuration_loads_bit_equal(tmp_path, caplog):
    name = write_hf_text_model(tmp_path)
    weights = random_weights(name)
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    with caplog.at_level(logging.INFO):
        model, *_ = superclip.create_model_and_transforms(name)
    assert_holds(model, weights)
    assert_fresh_head(model)
    assert caplog.messages.count(FRESH) == 1


# Kinds of files, on a small model.

FILES = {
    ".pt": as_a_file(".pt"),
    ".bin": as_a_file(".bin"),
    ".safetensors": as_a_file(".safetensors"),
    "training": as_a_file(".pt", as_a_training_run_saves("")),
    "training on several ranks": as_a_file(".pt", as_a_training_run_saves("module.")),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("model_name", [NAME, f"{NAME}-quickgelu"])
def test_a_file_of_any_kind_loads_bit_equal_beside_a_fresh_head(kind, model_name, tmp_path):
    weights = random_weights(model_name)
    model, *_ = superclip.create_model_and_transforms(*FILES[kind](weights, tmp_path, model_name))
    assert_holds(model, weights)
    assert_fresh_head(model)


def test_plain_weights_start_the_logit_bias_of_siglip_at_zero(tmp_path):
    weights = random_weights(NAME)
    torch.save(weights, tmp_path / "plain.pt")
    model, *_ = superclip.create_model_and_transforms(NAME, str(tmp_path / "plain.pt"), init_logit_bias=-10)
    assert_holds(model, weights | {"logit_bias": torch.zeros(())})
    assert_fresh_head(model)


SIGLIP = {
    "embed_dim": 96,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": {
        "context_length": 16, "vocab_size": 49408, "width": 96, "heads": 3, "layers": 2, "no_causal_mask": True,
        "proj_bias": True, "pool_type": "last",
    },
}  # fmt: skip


def big_vision_arrays(model) -> dict[str, np.ndarray]:
    """A model of OpenCLIP's as big_vision names and turns its arrays."""

    def attention(prefix, heads, out, **projections):
        arrays = {
            f"{prefix}/out/kernel": out.weight.T.reshape(heads, -1, len(out.weight)),
            f"{prefix}/out/bias": out.bias,
        }
        for name, (weight, bias) in projections.items():
            arrays[f"{prefix}/{name}/kernel"] = weight.T.reshape(weight.shape[1], heads, -1)
            arrays[f"{prefix}/{name}/bias"] = bias.reshape(heads, -1)
        return arrays

    def norm(prefix, layer):
        return {f"{prefix}/scale": layer.weight, f"{prefix}/bias": layer.bias}

    def dense(prefix, layer):
        return {f"{prefix}/kernel": layer.weight.T, f"{prefix}/bias": layer.bias}

    def split(weight, bias, *names):
        return dict(zip(names, zip(weight.chunk(len(names)), bias.chunk(len(names)), strict=True), strict=True))

    def block(prefix, norms, heads, out, qkv, mlp):
        return {
            **norm(f"{prefix}/LayerNorm_0", norms[0]),
            **norm(f"{prefix}/LayerNorm_1", norms[1]),
            **attention(f"{prefix}/MultiHeadDotProductAttention_0", heads, out, **split(*qkv, "query", "key", "value")),
            **dense(f"{prefix}/MlpBlock_0/Dense_0", mlp[0]),
            **dense(f"{prefix}/MlpBlock_0/Dense_1", mlp[1]),
        }

    trunk, text = model.visual.trunk, model.text
    pool = trunk.attn_pool
    arrays = {
        "img/embedding/kernel": trunk.patch_embed.proj.weight.permute(2, 3, 1, 0),
        "img/embedding/bias": trunk.patch_embed.proj.bias,
        "img/pos_embedding": trunk.pos_embed,
        **norm("img/Transformer/encoder_norm", trunk.norm),
        "img/MAPHead_0/probe": pool.latent,
        **attention(
            "img/MAPHead_0/MultiHeadDotProductAttention_0", pool.num_heads, pool.proj,
            query=(pool.q.weight, pool.q.bias), **split(pool.kv.weight, pool.kv.bias, "key", "value"),
        ),
        **norm("img/MAPHead_0/LayerNorm_0", pool.norm),
        **dense("img/MAPHead_0/MlpBlock_0/Dense_0", pool.mlp.fc1),
        **dense("img/MAPHead_0/MlpBlock_0/Dense_1", pool.mlp.fc2),
        "txt/Embed_0/embedding": text.token_embedding.weight,
        "txt/pos_embedding": text.positional_embedding[None],
        **norm("txt/Encoder_0/encoder_norm", text.ln_final),
        **dense("txt/head", text.text_projection),
        "b": model.logit_bias[None],
        "t": model.logit_scale[None],
    }  # fmt: skip
    for i, layer in enumerate(trunk.blocks):
        attn = layer.attn
        arrays |= block(
            f"img/Transformer/encoderblock_{i}", (layer.norm1, layer.norm2), attn.num_heads, attn.proj,
            (attn.qkv.weight, attn.qkv.bias), (layer.mlp.fc1, layer.mlp.fc2),
        )  # fmt: skip
    for i, layer in enumerate(text.transformer.resblocks):
        attn = layer.attn
        arrays |= block(
            f"txt/Encoder_0/encoderblock_{i}", (layer.ln_1, layer.ln_2), attn.num_heads, attn.out_proj,
            (attn.in_proj_weight, attn.in_proj_bias), (layer.mlp.c_fc, layer.mlp.c_proj),
        )  # fmt: skip
    return {name: array.detach().numpy() for name, array in arrays.items()}


def test_big_vision_arrays_load_bit_equal_beside_a_fresh_head(small_flags, csv_data, tmp_path, monkeypatch):
    """A run at learning rate 0 saves what it started from."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, NAME, SIGLIP)
    plain = open_clip.create_model(NAME)
    np.savez(tmp_path / "weights.npz", **big_vision_arrays(plain))
    (tmp_path / "few.csv").write_text("".join(csv_data.read_text().splitlines(keepends=True)[: 1 + 16]))
    flags = [*start_from(tmp_path / "weights.npz"), "--siglip", "--train-data", str(tmp_path / "few.csv")]
    (run,) = run_ranks(superclip_train, *small_flags, *flags, cwd=tmp_path)
    assert run.returncode == 0, run.output[-3000:]
    assert run.output.count(FRESH) == 1
    assert_saved(tmp_path, plain.state_dict(), num_captions=16)


def start_from(weights):
    """Flags of a run that starts from `weights` and changes nothing."""
    return ["--model", NAME, "--pretrained", str(weights), "--superclip", "--lr", "0", "--wd", "0"]


def assert_saved(folder, weights, num_captions=64):
    state = saved(folder)["state_dict"]
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())
    assert not state["class_head.bias"].any()
    assert state["statistics.num_captions"] == num_captions


class Part(torch.nn.Module):
    """A module that a TorchScript archive can hold."""

    def forward(self):
        return 0


def write_torchscript(weights, file):
    """Writes an archive whose state dict is `weights`."""
    root = Part()
    for name, tensor in weights.items():
        *path, last = name.split(".")
        part = root
        for step in path:
            if step not in part._modules:
                part.add_module(step, Part())
            part = part._modules[step]
        part.register_buffer(last, tensor)
    torch.jit.script(root).save(file)


def test_openais_archives_load_bit_equal_beside_a_fresh_head(small_flags, tmp_path):
    """TorchScript, most weights in float16, and three numbers among them, as OpenAI released them."""
    model = open_clip.create_model(NAME)
    open_clip.model.convert_weights_to_fp16(model)
    plain = {name: tensor.float() for name, tensor in model.state_dict().items()}
    numbers = {"input_resolution": 32, "context_length": 20, "vocab_size": 49408}
    write_torchscript(model.state_dict() | {k: torch.tensor(v) for k, v in numbers.items()}, tmp_path / "openai.pt")
    (run,) = run_ranks(superclip_train, *small_flags, *start_from(tmp_path / "openai.pt"), cwd=tmp_path)
    assert run.returncode == 0, run.output[-3000:]
    assert run.output.count(FRESH) == 1
    assert_saved(tmp_path, plain)


# What a run says, starts with and refuses.


def test_a_superclip_checkpoint_brings_its_head_and_statistics_and_the_log_says_so(small_flags, tmp_path):
    trained = superclip.create_model_and_transforms(NAME)[0]
    trained.statistics.update(open_clip.get_tokenizer(NAME)(["a red cat", "a dog"]))
    torch.save({"epoch": 1, "state_dict": trained.state_dict()}, tmp_path / "trained.pt")
    (run,) = run_ranks(superclip_train, *small_flags, *start_from(tmp_path / "trained.pt"), cwd=tmp_path)
    assert run.returncode == 0, run.output[-3000:]
    assert run.output.count("SuperCLIP: the weights contain a class head and the counts of 2 captions") == 1
    assert FRESH not in run.output
    state = saved(tmp_path)["state_dict"]
    assert torch.equal(state["class_head.weight"], trained.class_head.weight)
    assert state["statistics.num_captions"] == 2 + 64


def saved(folder, name="run"):
    return torch.load(folder / "logs" / str(name) / "checkpoints" / "epoch_1.pt", weights_only=True)


def test_weight_decay_leaves_the_heads_gains_and_biases_alone(small_flags, tmp_path):
    (run,) = run_ranks(superclip_train, *small_flags, "--superclip", cwd=tmp_path)
    assert run.returncode == 0, run.output[-3000:]
    undecayed, decayed = saved(tmp_path)["optimizer"]["param_groups"]
    assert (undecayed["weight_decay"], decayed["weight_decay"]) == (0.0, 0.2)
    state = saved(tmp_path)["optimizer"]["state"]
    by_shape = {group_name: {tuple(state[i]["exp_avg"].shape) for i in group["params"]} for group_name, group in
                (("undecayed", undecayed), ("decayed", decayed))}  # fmt: skip
    assert (49408,) in by_shape["undecayed"]  # the head's bias, alone of that shape
    assert (49408, 16) in by_shape["decayed"]  # its weight
    assert all(len(shape) == 1 for shape in by_shape["undecayed"] - {()})
    assert all(len(shape) > 1 for shape in by_shape["decayed"])  # so the head's gains are not there


def reached(model, *micro_batches) -> list[bool]:
    """Whether the class loss of each micro-batch of a step reaches the vision tower; the head it always does."""
    if len(micro_batches) > 1:
        with torch.no_grad():
            for batch in micro_batches:
                model(*batch)
    answers = []
    for batch in micro_batches:
        model.zero_grad()
        model(*batch)["class_losses"].mean().backward()
        assert model.class_head.weight.grad.any()
        answers.append(bool(model.visual.conv1.weight.grad.any()))
    return answers


def batch(*captions):
    return torch.randn(len(captions), 3, 32, 32), open_clip.get_tokenizer(NAME)(captions)


def test_in_the_heads_warm_up_the_class_loss_trains_the_head_alone():
    model = superclip.create_model_and_transforms(NAME, head_warmup=8)[0]
    steps = [reached(model, batch("a red cat", "a dog", "a fish", "sun")) for _ in range(3)]
    assert steps == [[False], [False], [True]]  # after 4, 8 and 12 captions


def test_the_heads_warm_up_ends_at_once_for_all_micro_batches_of_a_step():
    model = superclip.SuperCLIP(**CONFIG, superclip={"accum_freq": 2, "head_warmup": 8})
    steps = [reached(model, batch("a red cat", "a dog"), batch("a fish", "sun")) for _ in range(3)]
    assert steps == [[False, False], [False, False], [True, True]]


def warm_up_as_a_rank():
    torch.distributed.init_process_group("gloo")
    model = superclip.create_model_and_transforms(NAME, head_warmup=8)[0]
    captions = [("a red cat", "a dog", "a fish"), ("sun",)][torch.distributed.get_rank()]
    print([reached(model, batch(*captions)) for _ in range(3)])
    torch.distributed.destroy_process_group()


def test_the_heads_warm_up_ends_at_once_on_all_ranks(tmp_path):
    runs = run_ranks(warm_up_as_a_rank, world_size=2, cwd=tmp_path)
    assert [run.returncode for run in runs] == [0, 0], runs[0].output
    assert ["[[False], [False], [True]]" in run.output for run in runs] == [True, True]


WARM_UP = "--superclip --superclip-head-warmup"


def test_in_the_heads_warm_up_the_contrastive_loss_trains_on_as_ever(small_flags, tmp_path):
    (stock,) = run_ranks(stock_train, *small_flags, "--name", "stock", cwd=tmp_path)
    (ours,) = run_ranks(superclip_train, *small_flags, *f"{WARM_UP} 64".split(), cwd=tmp_path)
    assert ours.values("Contrastive_loss") == stock.values("Contrastive_loss")
    plain = torch.load(tmp_path / "logs/stock/checkpoints/epoch_1.pt", weights_only=True)["state_dict"]
    state = saved(tmp_path)["state_dict"]
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.items())
    assert state["class_head.bias"].any()


def test_the_heads_warm_up_ends_in_the_middle_of_a_run(small_flags, tmp_path):
    runs = {n: run_ranks(superclip_train, *small_flags, *f"{WARM_UP} {n} --name {n}".split(), cwd=tmp_path)[0]
            for n in (0, 32, 64)}  # fmt: skip
    losses = {n: run.values("Contrastive_loss") for n, run in runs.items()}
    assert losses[32][:3] == losses[64][:3]  # the third step's loss is computed before its update
    towers = [saved(tmp_path, name=n)["state_dict"]["visual.conv1.weight"] for n in runs]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(towers, 2))


def test_a_resumed_model_goes_on_where_its_heads_warm_up_was():
    images, texts = torch.randn(4, 3, 32, 32), open_clip.get_tokenizer(NAME)(["a red cat", "a dog", "a fish", "sun"])
    model = superclip.create_model_and_transforms(NAME, head_warmup=8)[0]
    for expected in (False, False, True):
        resumed = superclip.create_model_and_transforms(NAME, head_warmup=8)[0]
        resumed.load_state_dict(model.state_dict())
        resumed(images, texts)["class_losses"].mean().backward()
        assert resumed.visual.conv1.weight.grad.any() == expected
        model = resumed


def test_a_negative_warm_up_is_refused(small_flags, tmp_path):
    (run,) = run_ranks(superclip_train, *small_flags, *f"{WARM_UP} -1".split(), cwd=tmp_path)
    assert run.returncode != 0
    assert run.errors() == ["error: --superclip-head-warmup is -1; expected 0 or more samples"]


@pytest.fixture(scope="module")
def runs(small_flags, tmp_path_factory):
    """A folder with a plain run and a SuperCLIP run under logs/."""
    folder = tmp_path_factory.mktemp("runs")
    for name, flags in {"plain": [], "with-head": ["--superclip"]}.items():
        (run,) = run_ranks(
            superclip_train, *small_flags, "--name", name, "--save-most-recent", *flags, cwd=folder
        )  # fmt: skip
        assert run.returncode == 0, run.output[-3000:]
    state = torch.load(folder / "logs/plain/checkpoints/epoch_1.pt", weights_only=True)["state_dict"]
    torch.save(state, folder / "bare.pt")
    (folder / "empty").mkdir()
    (folder / "corrupt.pt").write_bytes((folder / "bare.pt").read_bytes()[:5000])
    return folder


REFUSED = {  # flags: what the one line says
    "--superclip --resume logs/plain/checkpoints/epoch_1.pt": "--pretrained logs/plain/checkpoints/epoch_1.pt",
    "--superclip --resume bare.pt": "--pretrained bare.pt",
    "--superclip --resume latest --name plain": "logs/plain/checkpoints/epoch_",
    "--superclip --resume latest --name plain --save-most-recent": "epoch_latest.pt",
    "--superclip --resume corrupt.pt": "corrupt.pt cannot be read",
    "--superclip --resume nowhere.pt": "there is no file nowhere.pt",
    "--resume nowhere.pt": "there is no file nowhere.pt",
    "--superclip --resume logs/plain/checkpoints": "logs/plain/checkpoints is a folder; expected a checkpoint, such as "
    "logs/plain/checkpoints/epoch_",
    "--superclip --resume logs/plain": "is a folder; expected a checkpoint, such as logs/plain/checkpoints/epoch_",
    "--resume empty": "empty is a folder; expected a checkpoint, and there is none in it",
    "--resume logs/with-head/checkpoints/epoch_1.pt": "add --superclip",
    "--resume latest --name with-head": "logs/with-head/checkpoints/epoch_",
}


@pytest.mark.parametrize(("flags", "advice"), REFUSED.items(), ids=REFUSED)
def test_resuming_a_run_of_the_other_kind_or_none_at_all_is_refused_with_advice(flags, advice, runs, small_flags):
    before = sorted(runs.rglob("*"))
    (run,) = run_ranks(superclip_train, *small_flags, *flags.split(), cwd=runs)
    assert run.returncode != 0
    (error,) = run.errors()
    assert error.startswith("error: --resume: ")
    assert advice in error
    assert "Traceback" not in run.output
    assert [path for path in sorted(runs.rglob("*")) if "rank0" not in path.name] == [
        path for path in before if "rank0" not in path.name
    ]


def refusal(run) -> str:
    assert run.returncode != 0
    (error,) = run.errors()
    return error


def start_of(folder, name) -> dict:
    """The weights of OpenCLIP's that a run at learning rate 0 started from."""
    return {
        k: v for k, v in saved(folder, name)["state_dict"].items() if not k.startswith(("class_head", "statistics"))
    }


STILL = ["--lr", "0", "--wd", "0"]


def test_the_advice_to_start_from_a_plain_runs_weights_is_a_command_that_does(runs, small_flags, tmp_path):
    """The model is a local-dir:, beside which OpenCLIP ignores --pretrained."""
    shutil.copytree(runs / "logs", tmp_path / "logs")
    flags = [*small_flags, "--superclip", *STILL]
    (refused,) = run_ranks(superclip_train, *flags, "--name", "plain", "--resume", "latest", cwd=tmp_path)
    advice = re.search(r"give (--pretrained \S+) and a new --name", refusal(refused))[1]
    (run,) = run_ranks(superclip_train, *flags, *advice.split(), "--name", "advised", cwd=tmp_path)
    assert run.returncode == 0, run.output[-2000:]
    plain = torch.load(runs / "logs/plain/checkpoints/epoch_1.pt", weights_only=True)["state_dict"]
    torch.testing.assert_close(start_of(tmp_path, "advised"), plain, rtol=0, atol=0)


def test_the_advice_to_export_a_superclip_run_is_a_command_that_does(runs, small_flags, tmp_path):
    shutil.copytree(runs / "logs", tmp_path / "logs")
    flags = [*small_flags, *STILL]
    (refused,) = run_ranks(superclip_train, *flags, "--name", "with-head", "--resume", "latest", cwd=tmp_path)
    found = re.search(r"superclip (export .*), then (--model \S+) and a new --name", refusal(refused))
    export, model = (text.replace("FOLDER", str(tmp_path / "exported")).split() for text in found.groups())
    assert run_ranks(main, export, cwd=tmp_path)[0].returncode == 0
    (run,) = run_ranks(superclip_train, *flags, *model, "--name", "advised", cwd=tmp_path)
    assert run.returncode == 0, run.output[-2000:]
    before = start_of(runs, "with-head")
    torch.testing.assert_close(start_of(tmp_path, "advised"), before, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "superclip"), [("plain", []), ("with-head", ["--superclip"])])
def test_the_advice_to_two_ranks_that_resume_one_processs_run_is_a_command_that_does(
    name, superclip, runs, small_flags, tmp_path
):
    shutil.copytree(runs / "logs", tmp_path / "logs")
    flags, two = [*small_flags, *superclip, *STILL], {"world_size": 2, "cwd": tmp_path}
    refused = refusal(run_ranks(superclip_train, *flags, "--name", name, "--resume", "latest", **two)[0])
    advice = re.search(r"give (--pretrained \S+) and a new --name", refused)
    if advice is None:
        found = re.search(r"superclip (export .*), then (--model \S+) and a new --name", refused)
        export, advice = (text.replace("FOLDER", str(tmp_path / "exported")) for text in found.groups())
        assert run_ranks(main, export.split(), cwd=tmp_path)[0].returncode == 0
    else:
        advice = advice[1]
    started = run_ranks(superclip_train, *flags, *advice.split(), "--name", "advised", **two)
    assert [run.returncode for run in started] == [0, 0], started[0].output[-2000:]
    ours = {k.removeprefix("module."): v for k, v in saved(tmp_path, "advised")["state_dict"].items()}
    before = start_of(runs, name)
    torch.testing.assert_close({k: v for k, v in ours.items() if k in before}, before, rtol=0, atol=0)


def test_a_newest_checkpoint_that_was_cut_is_set_aside_and_the_one_before_resumed(runs, small_flags, tmp_path):
    shutil.copytree(runs / "logs", tmp_path / "logs")
    checkpoints = tmp_path / "logs/with-head/checkpoints"
    (checkpoints / "epoch_latest.pt").unlink()
    whole = (checkpoints / "epoch_1.pt").read_bytes()
    (checkpoints / "epoch_2.pt").write_bytes(whole[: len(whole) // 2])
    flags = ["--superclip", "--name", "with-head", "--resume", "latest", "--epochs", "2"]
    (run,) = run_ranks(superclip_train, *small_flags, *flags, cwd=tmp_path)
    assert run.returncode == 0, run.output[-2000:]
    place = "logs/with-head/checkpoints/epoch_"
    assert f"is now {place}2.pt.damaged; --resume latest resumes from {place}1.pt" in run.output, run.output[:300]
    assert "Start epoch 1" in run.output
    assert len((checkpoints / "epoch_2.pt.damaged").read_bytes()) == len(whole) // 2
    assert saved(tmp_path, "with-head")["epoch"] == 1


@pytest.mark.parametrize("others", [["epoch_1.pt"], []], ids=["an epoch before it", "nothing else"])
def test_a_cut_epoch_latest_is_set_aside_and_the_newest_whole_epoch_resumed(others, runs, small_flags, tmp_path):
    shutil.copytree(runs / "logs", tmp_path / "logs")
    checkpoints = tmp_path / "logs/with-head/checkpoints"
    whole = (checkpoints / "epoch_latest.pt").read_bytes()
    (checkpoints / "epoch_latest.pt").write_bytes(whole[: len(whole) // 2])
    if not others:
        (checkpoints / "epoch_1.pt").unlink()
    flags = ["--superclip", "--name", "with-head", "--resume", "latest", "--save-most-recent", "--epochs", "2"]
    (run,) = run_ranks(superclip_train, *small_flags, *flags, cwd=tmp_path)
    assert run.returncode == 0, run.output[-2000:]
    place = "logs/with-head/checkpoints/epoch_"
    resumes = f"resumes from {place}1.pt" if others else "starts from the beginning"
    assert f"is now {place}latest.pt.damaged; --resume latest {resumes}" in run.output, run.output[:300]
    assert ("Start epoch 0" in run.output) == (not others)
    assert len((checkpoints / "epoch_latest.pt.damaged").read_bytes()) == len(whole) // 2
    assert torch.load(checkpoints / "epoch_latest.pt", weights_only=False)["epoch"] == 2


def test_a_run_of_another_model_is_not_resumed(runs, small_flags, tmp_path):
    model = write_model(tmp_path / "model", vision={"layers": 1})
    resume = ["--superclip", "--model", model, "--resume", "logs/with-head/checkpoints/epoch_1.pt"]
    error = refusal(run_ranks(superclip_train, *small_flags, *resume, cwd=runs)[0])
    assert error.startswith(f"error: --model is {model}, and --resume: logs/with-head/checkpoints/epoch_1.pt is of")


@pytest.mark.parametrize("flags", ["--pretrained corrupt.pt", "--pretrained not.pt"])
def test_a_file_of_weights_that_cannot_be_read_is_refused_before_a_run_begins(flags, runs, small_flags, tmp_path):
    shutil.copy(runs / "corrupt.pt", tmp_path)
    (tmp_path / "not.pt").write_text("no weights")
    error = refusal(run_ranks(superclip_train, *small_flags, "--superclip", *flags.split(), cwd=tmp_path)[0])
    assert error.startswith(f"error: {flags.replace(' ', ': ')} cannot be read")
    assert not (tmp_path / "logs").exists()


def test_a_teacher_of_random_weights_is_refused(runs, small_flags, tmp_path):
    teacher, weights = write_model(tmp_path / "teacher"), runs / "bare.pt"
    flags = ["--superclip", "--distill-model", teacher, "--distill-pretrained"]
    ignored = refusal(run_ranks(superclip_train, *small_flags, *flags, str(weights), cwd=tmp_path)[0])
    assert ignored.startswith(f"error: --distill-pretrained {weights} is ignored by OpenCLIP")
    assert ignored.endswith(f"give --distill-pretrained {teacher}")
    missing = refusal(run_ranks(superclip_train, *small_flags, *flags, teacher, cwd=tmp_path)[0])
    assert missing.startswith(f"error: --distill-model: {tmp_path}/teacher holds no weights")


def test_the_checkpoints_below_a_folder_are_not_offered_for_it(runs, small_flags, tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    shutil.copy(runs / "bare.pt", tmp_path / "a/b/epoch_1.pt")
    error = refusal(run_ranks(superclip_train, *small_flags, "--resume", "a", cwd=tmp_path)[0])
    assert error.endswith("a is a folder; expected a checkpoint, and there is none in it")


WITHOUT_HEAD = {
    "--pretrained": "--model {name} --pretrained {weights}",
    "--distill-pretrained": "--model {name} --distill-model {name} --distill-pretrained {weights}",
    "--distill-pretrained beside --superclip": "--model {name} --distill-model {name} --distill-pretrained {weights} "
    "--superclip",
    "--model": "--model local-dir:{folder}",
}


@pytest.mark.parametrize("flags", WITHOUT_HEAD.values(), ids=WITHOUT_HEAD)
def test_weights_with_a_class_head_start_a_model_without_one(flags, small_flags, tmp_path):
    torch.save(superclip.create_model_and_transforms(NAME)[0].state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}}))
    weights = tmp_path / "open_clip_pytorch_model.bin"
    argv = flags.format(name=NAME, weights=weights, folder=tmp_path).split()
    (run,) = run_ranks(superclip_train, *small_flags, *argv, *STILL, cwd=tmp_path)
    assert run.returncode == 0, run.output[-2000:]
    if "distill" not in flags:
        expected = {k: v for k, v in torch.load(weights).items() if not k.startswith(("class_head.", "statistics."))}
        torch.testing.assert_close(saved(tmp_path)["state_dict"], expected, rtol=0, atol=0)


NOT_THERE = {  # flags: what the one line says
    "--model ViT-B-23": "error: --model: OpenCLIP knows no 'ViT-B-23'; did you mean ViT-B-32",
    "--model zzz": "error: --model: OpenCLIP knows no 'zzz'; open_clip.list_models()",
    "--model local-dir:nowhere": "error: --model: local-dir:nowhere has no readable open_clip_config.json",
    f"--model {NAME} --pretrained laion": "error: --pretrained is 'laion', no file and none of the weights",
    "--model ViT-B-32 --pretrained laion": "expected a file or one of openai",
    "--distill-model ViT-B-23 --distill-pretrained openai": "error: --distill-model: OpenCLIP knows no 'ViT-B-23'",
    "--superclip --pretrained openai": "error: --pretrained openai cannot go with --model local-dir:",
}


@pytest.mark.parametrize(("flags", "reason"), NOT_THERE.items(), ids=NOT_THERE)
def test_a_model_that_is_not_there_is_refused_before_the_run_begins(flags, reason, small_flags, tmp_path):
    (run,) = run_ranks(superclip_train, *small_flags, *flags.split(), cwd=tmp_path)
    assert reason in refusal(run)
    assert "Traceback" not in run.output
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("flags", ["--name plain", "--name with-head --superclip", "--name new --superclip"])
def test_resuming_the_latest_of_a_run_of_the_same_kind_or_of_none_goes_on(flags, runs, small_flags, tmp_path):
    shutil.copytree(runs / "logs", tmp_path / "logs")
    (run,) = run_ranks(
        superclip_train, *small_flags, "--resume", "latest", "--epochs", "2", *flags.split(), cwd=tmp_path
    )
    assert run.returncode == 0, run.output[-3000:]
    assert "Start epoch 1" in run.output


@pytest.mark.parametrize("disguise", ["a/x/constants.pkl", "b/constants.pkl"])
def test_a_pickle_disguised_as_torchscript_is_not_taken_for_it(disguise, tmp_path):
    file = tmp_path / "a.pt"
    torch.save({"weight": torch.zeros(1)}, file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(disguise, b"")
    assert not is_torchscript(file)
