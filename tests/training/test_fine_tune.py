"""Released weights of every kind start a SuperCLIP run bit-equal, with a
fresh head or the one that they bring."""

import logging
import re
import shlex
import shutil
import sys
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from support import DATA, cases, parametrize, read_json, refusals, succeed, write_json
from support.models import (
    MODELS,
    add_to_cache,
    assert_equal,
    random_weights,
    without_head,
    write_hf_text_model,
    write_model,
)
from support.three_steps import results_of
from support.training_runs import (
    completed,
    error_of,
    execute,
    failure,
    load,
    run_ranks,
    run_train,
    stock_train,
    superclip_train,
)

import openclip_superclip as superclip

NAME = "tiny-for-fine-tuning"
FRESH = "SuperCLIP: the weights contain no class head; training starts with a new one"
CONFIG = read_json(DATA / "small_clip.json")


@pytest.fixture(autouse=True)
def tiny_configuration(monkeypatch):
    """A small model with a name and a released tag, as OpenCLIP's own
    have."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, NAME, CONFIG)
    monkeypatch.setitem(
        open_clip.factory._MODEL_CONFIGS, f"{NAME}-quickgelu", {**CONFIG, "quick_gelu": True}
    )
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED, NAME, {"ours": {"hf_hub": "someone/model/"}}
    )
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def small_run(short_run, tmp_path_factory):
    """Flags of a short run of a model whose head is small."""
    model = write_model(tmp_path_factory.mktemp("small"), CONFIG["vision_cfg"], CONFIG["text_cfg"])
    return f"{short_run} --model {model}"


def assert_holds(model, weights):
    """The model has these weights and a fresh head: rows of the right
    spread, no bias, and nothing counted."""
    head, width = model.class_head, model.patch_tokens.width
    torch.testing.assert_close(
        without_head(model.state_dict()), weights, rtol=0, atol=0, check_dtype=False
    )
    assert head.weight.std().item() == pytest.approx(width**-0.5, rel=0.05)
    assert not head.bias.any()
    assert model.statistics.num_captions == 0


# Kinds of files and models


def as_a_released_tag(weights, folder):
    save_file(weights, folder / "open_clip_model.safetensors")
    add_to_cache(folder / "cache", "someone/model", folder / "open_clip_model.safetensors")
    return NAME, "ours"


def as_a_file(suffix, model=NAME):
    def write(weights, folder):
        file = folder / f"weights{suffix}"
        (save_file if suffix == ".safetensors" else torch.save)(weights, file)
        return model, str(file)

    return write


def write_config(folder):
    write_json(folder / "open_clip_config.json", {"model_cfg": CONFIG, "preprocess_cfg": {}})


def as_a_hub_repository(weights, folder):
    write_config(folder)
    save_file(weights, folder / "open_clip_model.safetensors")
    files = [folder / "open_clip_config.json", folder / "open_clip_model.safetensors"]
    add_to_cache(folder / "cache", "someone/model", *files)
    return "hf-hub:someone/model", None


FILES = {
    "a released tag": as_a_released_tag,
    "the hub": as_a_hub_repository,
    ".safetensors": as_a_file(".safetensors"),
    "quickgelu": as_a_file(".pt", f"{NAME}-quickgelu"),
}


@parametrize("kind", FILES)
def test_a_file_of_any_kind_loads_bit_equal_beside_a_fresh_head(kind, tmp_path, caplog):
    weights = random_weights(NAME)
    model, pretrained = FILES[kind](weights, tmp_path)
    with caplog.at_level(logging.INFO):
        model, *_ = superclip.create_model_and_transforms(
            model, pretrained, cache_dir=f"{tmp_path}/cache"
        )
    assert_holds(model, weights)
    assert caplog.messages.count(FRESH) == 1


@parametrize("quick_gelu", [False, True])
@torch.no_grad()
def test_a_released_tag_is_exported_to_a_folder_that_opens_without_a_cache(
    quick_gelu, tmp_path, monkeypatch
):
    released = {"hf_hub": "someone/model/", "mean": [0.5] * 3, "std": [0.4] * 3}
    tags = {"ours": released | {"quick_gelu": quick_gelu}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, NAME, tags)
    as_a_released_tag(random_weights(NAME), tmp_path)
    cache, start = f"{tmp_path}/cache", f"local-dir:{tmp_path}/start"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", cache)
    expected, _, transform = open_clip.create_model_and_transforms(
        NAME, "ours", cache_dir=cache, force_quick_gelu=quick_gelu
    )
    execute(f"export {NAME}:ours --out {tmp_path}/start")
    shutil.rmtree(cache)
    exported, _, exported_transform = open_clip.create_model_and_transforms(start)
    image, captions = torch.randn(2, 3, 32, 32), ["a", "a cat"]
    features = [
        model.eval()(image, open_clip.get_tokenizer(name)(captions))
        for model, name in ((exported, start), (expected, NAME))
    ]
    assert_equal(*features)
    assert str(exported_transform) == str(transform)
    error = failure(f"export {NAME}:others --out {tmp_path}/other")
    assert f"CHECKPOINT is {NAME}:others: no file, and no MODEL:TAG" in error


@parametrize("kind", ["resnet", "timm-vit-map", "a Hugging Face text tower"])
def test_the_weights_in_a_models_folder_load_bit_equal_beside_a_fresh_head(kind, tmp_path):
    name = (
        write_model(tmp_path, **MODELS[kind]) if kind in MODELS else write_hf_text_model(tmp_path)
    )
    weights = random_weights(name)
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    model, *_ = superclip.create_model_and_transforms(name)
    assert_holds(model, weights)


def test_plain_weights_start_the_logit_bias_of_siglip_at_zero(tmp_path):
    weights = random_weights(NAME)
    torch.save(weights, tmp_path / "plain.pt")
    model, *_ = superclip.create_model_and_transforms(
        NAME, f"{tmp_path}/plain.pt", init_logit_bias=-10
    )
    assert_holds(model, weights | {"logit_bias": torch.zeros(())})


def test_openais_archives_are_refused_with_the_command_that_converts_them(tmp_path, monkeypatch):
    """TorchScript, most weights in float16, and three numbers among them,
    as OpenAI released them."""
    monkeypatch.chdir(tmp_path)
    model = open_clip.create_model(NAME)
    open_clip.model.convert_weights_to_fp16(model)
    weights = model.state_dict()
    for name, number in {"input_resolution": 32, "context_length": 20, "vocab_size": 49408}.items():
        model.__dict__.pop(name, None)
        model.register_buffer(name, torch.tensor(number))
    del model.attn_mask
    model.attn_mask = None
    torch.jit.script(model).save("open ai.pt")
    (line,) = failure(f"export 'open ai.pt' --model {NAME} --out out").splitlines()
    command = line.partition("if you trust it, run ")[2].removesuffix(", and give weights.pt")
    succeed([sys.executable, *shlex.split(command)[1:]])
    ours, *_ = superclip.create_model_and_transforms(NAME, "weights.pt")
    assert_holds(ours, weights)


# The warm-up of the head


def reached(model, *micro_batches):
    """Whether the class loss of each micro-batch of a step reaches the
    vision tower; it always reaches the head."""
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


def test_the_heads_warm_up_ends_for_all_micro_batches_of_a_step_and_continues_after_a_resume():
    def model():
        return superclip.SuperCLIP(**CONFIG, superclip={"accum_freq": 2, "head_warmup": 8})

    trained, answers = model(), []
    for _ in range(3):
        resumed = model()
        resumed.load_state_dict(trained.state_dict())
        trained = resumed
        answers.append(reached(trained, batch("a red cat", "a dog"), batch("a fish", "sun")))
    assert answers == [[False, False], [False, False], [True, True]]


def test_the_heads_warm_up_ends_at_the_same_step_on_all_ranks(tmp_path):
    def warm_up(rank, world_size):
        model = superclip.create_model_and_transforms(NAME, head_warmup=8)[0]
        captions = [("a red cat", "a dog", "a fish"), ("sun",)][rank]
        return [reached(model, batch(*captions)) for _ in range(3)]

    assert results_of(warm_up, 2, tmp_path / "ranks") == [[[False], [False], [True]]] * 2


def test_a_locked_image_tower_trains_as_in_stock_openclip_and_the_head_learns(small_run, tmp_path):
    completed(stock_train, small_run, "--lock-image --name stock", cwd=tmp_path)
    run = run_train(small_run, "--superclip --lock-image", cwd=tmp_path)
    assert "the image tower is frozen, so the class loss trains only its head" in run.output
    stock, whole = (load(tmp_path / "logs" / name)["state_dict"] for name in ("stock", "run"))
    assert_equal(without_head(whole), stock)
    assert whole["class_head.bias"].any()


# What a run resumes, starts from and refuses


@pytest.fixture(scope="module")
def runs(small_run, tmp_path_factory):
    """A folder with a plain run and a SuperCLIP run under logs/, and files
    that are none."""
    folder = tmp_path_factory.mktemp("runs")
    for flags in ("--name plain", "--name with-head --superclip"):
        run_train(small_run, "--save-most-recent", flags, cwd=folder)
    torch.save(load(folder / "logs/plain")["state_dict"], folder / "bare.pt")
    (folder / "corrupt.pt").write_bytes((folder / "bare.pt").read_bytes()[:5000])
    write_model(folder / "no-coca")
    write_model(folder / "captioner", **MODELS["coca"])
    return folder


@cases("flags, reason", refusals("starting_weights"))
def test_weights_that_cannot_start_a_run_are_refused_before_it_begins(
    flags, reason, runs, small_run, refusal, monkeypatch
):
    monkeypatch.chdir(runs)
    before = sorted(runs.rglob("*"))
    assert reason in refusal(small_run, flags)
    assert sorted(runs.rglob("*")) == before


def test_a_checkpoint_of_another_model_is_one_line(runs, small_run, tmp_path):
    flags = (
        f"--superclip --model ViT-Ti-16-96 --resume {runs}/logs/with-head/checkpoints/epoch_1.pt"
    )
    error = error_of(superclip_train, small_run, flags, cwd=tmp_path)
    assert "epoch_1.pt is of a run with another model or optimizer" in error


STILL = "--lr 0 --wd 0"  # saves what it started from


@parametrize("name, world_size", [("plain", 1), ("with-head", 2)])
def test_the_advice_to_start_from_a_runs_weights_works(name, world_size, runs, small_run, tmp_path):
    """The model is a local-dir:, beside which OpenCLIP ignores
    --pretrained."""
    shutil.copytree(runs / "logs", tmp_path / "logs")
    flags = f"{small_run} --superclip {STILL}"
    ranks = {"world_size": world_size, "cwd": tmp_path}
    refused = run_ranks(superclip_train, flags, f"--name {name} --resume latest", **ranks)[0]
    (error,) = refused.errors()
    advice = re.search(r"give (--pretrained .+) and a new --name", error)[1]
    run_train(flags, advice, "--name advised", **ranks)
    found, given = (load(tmp_path / "logs" / run)["state_dict"] for run in ("advised", name))
    assert_equal(without_head(found), without_head(given))


def test_weights_with_a_class_head_start_a_model_without_one(small_run, tmp_path):
    weights = superclip.create_model_and_transforms(NAME)[0].state_dict()
    torch.save(weights, tmp_path / "open_clip_pytorch_model.bin")
    write_config(tmp_path)
    flags = f"{small_run} --model local-dir:{tmp_path}"
    run_train(flags, STILL, cwd=tmp_path)
    trained = load(tmp_path / "logs/run")["state_dict"]
    assert_equal(trained, without_head(weights))
    teacher = f"--distill-model local-dir:{tmp_path} --distill-pretrained local-dir:{tmp_path}"
    run_train(flags, f"--superclip --name taught {teacher}", cwd=tmp_path)


@parametrize("others", [["epoch_1.pt"], []], ids=["a whole one", "no other"])
def test_a_truncated_checkpoint_is_set_aside_and_the_newest_complete_one_resumed(
    others, runs, small_run, tmp_path
):
    place = Path("logs/with-head/checkpoints")
    (tmp_path / place).mkdir(parents=True)
    for name in (*others, "../params.txt"):
        shutil.copy(runs / place / name, tmp_path / place / name)
    cut = tmp_path / place / "epoch_latest.pt"
    half = (runs / place / "epoch_1.pt").read_bytes()[:100_000]
    cut.write_bytes(half)
    flags = "--superclip --name with-head --resume latest --epochs 2 --save-most-recent"
    run = run_train(small_run, flags, cwd=tmp_path)
    resumes = f"resumes from {place}/epoch_1.pt" if others else "starts from the beginning"
    assert f"renamed to {place}/{cut.name}.damaged; --resume latest {resumes}" in run.output
    assert ("Start epoch 0" in run.output) == (not others)
    assert cut.with_name("epoch_latest.pt.damaged").read_bytes() == half
    assert torch.load(cut)["epoch"] == 2
