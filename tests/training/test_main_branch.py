"""OpenCLIP's main branch, from a checkout: OPENCLIP_SOURCE=DIR pytest -m
main."""

import argparse
import functools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from support import ROOT, cases, succeed, table
from support.data import SHARD_SIZE, write_imagenet, write_shards
from support.openclip_trees import openclip_train, patched_source
from support.tiny_run import state, write_recipe
from support.training_runs import (
    WHOLE_PICTURES,
    Run,
    assert_equal_runs,
    assert_trains_as_stock,
    completed,
    execute,
    in_one_order,
    run_ranks,
    run_train,
    shell_words,
    stock_train,
    superclip_train,
    traced_train,
    train_on_five_classes,
)

import openclip_superclip as superclip
from openclip_superclip.checkpoints.weights import read_checkpoint
from openclip_superclip.option_table import EFFECTS
from openclip_superclip.runs.progress import read_log
from openclip_superclip.trainer import current, openclip_4
from openclip_superclip.trainer.hook_calls import parse_args

pytestmark = [
    pytest.mark.main,
    pytest.mark.skipif(
        "OPENCLIP_SOURCE" not in os.environ, reason="needs OPENCLIP_SOURCE, a checkout of OpenCLIP"
    ),
]


def test_the_installed_openclip_is_the_main_branch():
    assert Path(open_clip.__file__).is_relative_to(Path(os.environ["OPENCLIP_SOURCE"]).resolve())
    assert current().HAS_TASKS


def test_every_option_of_the_main_branch_has_an_effect():
    parsed = vars(parse_args(["--superclip"], only_options=True))
    assert sorted(parsed.keys() - EFFECTS.keys()) == []


def test_the_patch_of_the_proposal_applies_and_is_short():
    patch = (ROOT / "patches/loss-for-openclip-4.diff").resolve()
    apply = ["git", "-C", os.environ["OPENCLIP_SOURCE"], "apply", "--check", str(patch)]
    subprocess.run(apply, check=True)
    assert len(patch.read_text().splitlines()) < 80


# Flag absent


def on_cpu_ranks(train):
    """`train` with a DDP that takes CPU ranks, to which OpenCLIP gives a
    device that torch refuses there."""

    def train_on_cpu_ranks(*argv):
        ddp = torch.nn.parallel.DistributedDataParallel
        torch.nn.parallel.DistributedDataParallel = lambda module, device_ids=None, **options: ddp(
            module, **options
        )
        return train(*argv)

    return train_on_cpu_ranks


@cases("world_size, flags", table("training: stock of main"))
def test_without_the_flag_training_is_stock(
    world_size, flags, models, shards, csv_data, short_run, tmp_path
):
    size = f"--batch-size {16 // world_size} --logs none"
    stock = on_cpu_ranks(stock_train) if world_size > 1 and "--fsdp" not in flags else stock_train
    flags = f"{short_run} {size} {flags}".format(shards=shards, csv=csv_data, **models)
    num_steps = assert_trains_as_stock(flags, cwd=tmp_path, world_size=world_size, stock=stock)
    assert num_steps == (2 if "--accum-freq" in flags else 4)


# The losses of OpenCLIP 3


@cases("model, world_size, flags", table("training: one step of main"))
def test_a_step_has_the_losses_of_the_release(
    model, world_size, flags, models, shards, short_run, tmp_path
):
    torch.manual_seed(1)
    torch.save(
        superclip.create_model_and_transforms(models[model])[0].state_dict(),
        tmp_path / "weights.pt",
    )
    batch_size = 64 // world_size // (2 if "--accum-freq" in flags else 1)
    flags = (
        f"{short_run} --model {models[model]} --pretrained {tmp_path}/weights.pt --superclip "
        f"--precision fp32 {WHOLE_PICTURES} {flags} --batch-size"
    ).format(shards=shards, **models)
    run = run_train(flags, batch_size, world_size=world_size, cwd=tmp_path)
    one_rank = flags.replace("--fsdp", "")
    released = released_train(f"{one_rank} {batch_size * world_size}", cwd=tmp_path)
    names = {"Contrastive_loss", "Class_loss", "Loss"} | (
        {"Caption_loss"} if model == "coca" else set()
    )
    assert names <= set(re.findall(r"(\w*oss): ", run.losses()[0]))
    for name in names:
        assert len(released.values(name)) == 1
        assert run.values(name) == pytest.approx(released.values(name), rel=3e-5), name


def released_train(flags, cwd):
    """`superclip train` with the OpenCLIP that is installed, in an
    interpreter of its own."""
    command = shell_words(sys.executable, "-m openclip_superclip train", flags, "--name released")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = succeed(command, cwd=cwd, env=environment, timeout=300)
    assert "open_clip_train.main.create_loss" in done.stdout
    return Run(0, done.stdout + done.stderr)


# More steps


def test_every_compile_strategy_trains_with_the_same_losses(models, short_run, tmp_path):
    flags = f"{short_run} --model {models['one-layer']} --superclip --precision fp32 --logs none"
    found = [run_train(flags, "--name uncompiled", cwd=tmp_path).values("Class_loss")]
    for strategy in ("model", "task", "step"):
        compiled = (
            f"--torchcompile --torchcompile-strategy {strategy} --torchcompile-backend aot_eager "
            f"--name {strategy}"
        )
        found.append(run_train(flags, compiled, cwd=tmp_path).values("Class_loss"))
    assert len(found[0]) == 4
    assert found == [pytest.approx(found[0], rel=1e-3)] * 4


def test_fsdp_trains_as_ddp_and_its_checkpoint_is_exported(tiny_model, short_run, tmp_path):
    flags = f"{short_run} --superclip --precision fp32 --superclip-head-lr 5e-3"
    flags = f"{flags} --batch-size 32 --epochs 2"
    for more in ("--name ddp", "--name fsdp --fsdp"):
        run_train(flags, more, world_size=2, cwd=tmp_path)
    files = [tmp_path / f"logs/{name}/checkpoints/epoch_2.pt" for name in ("ddp", "fsdp")]
    ddp, fsdp = map(read_checkpoint, files)
    assert ddp.weights.keys() == fsdp.weights.keys()
    assert ddp.epoch == fsdp.epoch == 2
    for name, weight in ddp.weights.items():
        torch.testing.assert_close(fsdp.weights[name], weight, rtol=1e-4, atol=1e-5, msg=name)
    assert ddp.weights["statistics.num_captions"] == 2 * 64
    execute(f"export {files[1]} --out {tmp_path}/exported --with-head")
    exported = read_checkpoint(tmp_path / "exported")
    assert torch.equal(exported.weights["class_head.weight"], fsdp.weights["class_head.weight"])
    texts = ["a cat!", "!!! (!", "a red dog and a house", ""]
    tokens = [
        open_clip.get_tokenizer(name)(texts)
        for name in (tiny_model, f"local-dir:{tmp_path / 'exported'}")
    ]
    assert torch.equal(*tokens)  # with the padding that the text tower knows


def test_naflex_trains_and_its_model_exports(models, short_run, tmp_path, refusal):
    shards = write_shards(tmp_path / "shards", 2)
    flags = (
        f"--train-data {shards} --dataset-type webdataset --train-num-samples {2 * SHARD_SIZE} "
        f"--model {models['vit']} --superclip --use-naflex --naflex-patch-sizes 8 "
        "--naflex-seq-lens 9 16 --naflex-max-tokens-per-batch 200"
    )
    dual = "--superclip-captions dual --superclip-long-caption txt --workers 0"
    assert "leave out --naflex-max-text-tokens" in refusal(
        flags, dual, "--naflex-max-text-tokens 8"
    )
    run = run_train(short_run, flags, cwd=tmp_path)
    assert run.values("Class_loss")
    checkpoint = tmp_path / "logs/run/checkpoints/epoch_1.pt"
    execute(f"export {checkpoint} --out {tmp_path}/exported --with-head")
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'exported'}")
    assert type(model.visual.trunk).__name__ == "NaFlexVit"


def test_zero_shot_accuracy_is_measured_on_imagenet_with_fsdp(csv_data, short_run, tmp_path):
    imagenet = write_imagenet(csv_data, tmp_path / "imagenet")
    flags = f"--superclip --precision fp32 --imagenet-val {imagenet} --fsdp"
    runs = completed(train_on_five_classes, short_run, flags, world_size=2, cwd=tmp_path)
    assert "imagenet-zeroshot-val-top5: 1.0000" in runs[0].output


def test_plan_writes_flags_that_the_main_branch_takes_and_run_trains_a_recipe_to_its_end(tmp_path):
    recipe, out = write_recipe(tmp_path, passes=1), tmp_path / "run"
    execute(f"plan {recipe} --device cpu")
    command = f"{sys.executable} -m openclip_superclip run {recipe} --out {out} --device cpu"
    succeed(command.split(), timeout=300)
    assert state(out)["state"] == "finished"
    points = read_log(out / "out.log")
    assert len(points) == 12
    assert {"contrastive_loss", "class_loss", "samples_per_second"} <= points[-1].keys()


SAMPLES = [
    {"jpg": b"1", "txt": b"a dog", "alt": b"an alt", "json": {"cap": "one"}},
    {"jpg": b"2", "txt": b" ", "alt": b"b", "json": {}},
]
CAPTIONS = {  # flags of OpenCLIP: the captions that the plugins get
    "txt": ({}, ["a dog"]),
    "alternatives": ({"text_key": "none;alt"}, ["an alt", "b"]),
    "json": ({"json_text_key": "none;cap"}, ["one"]),
}


@cases("flags, captions", CAPTIONS)
def test_plugins_get_the_caption_that_openclips_flags_name_and_no_empty_one(flags, captions):
    asked = []

    def tokens(sample):
        asked.append(sample["txt"])
        return torch.tensor([len(asked)])

    defaults = {"text_key": "txt", "json_text_key": None, "json_text_key_probs": None}
    stage = openclip_4.WebDataset(argparse.Namespace(**defaults | flags), None, tokens)
    renamed = stage.rename(image="jpg", text="json" if "json_text_key" in flags else "txt")
    assert [sample["text"].item() for sample in renamed(iter(SAMPLES))] == [
        *range(1, len(captions) + 1)
    ]
    assert asked == captions


# Patched


@pytest.fixture(scope="module")
def patched(tmp_path_factory):
    """The checkout, patched."""
    checkout = Path(os.environ["OPENCLIP_SOURCE"])
    return patched_source(checkout, tmp_path_factory.mktemp("patched"))


@cases("flags", table("training: patched main"))
def test_a_patched_main_branch_has_the_losses_of_the_launcher(
    flags, patched, models, shards, short_run, tmp_path
):
    flags = f"{short_run} --logs none --precision fp32 {flags}".format(shards=shards, **models)
    train_patched = functools.partial(openclip_train, patched)
    (ours,) = completed(in_one_order(superclip_train), flags, "--name ours", cwd=tmp_path)
    (theirs,) = completed(in_one_order(train_patched), flags, "--name patched", cwd=tmp_path)
    assert len(ours.losses()) >= 2
    assert theirs.losses() == ours.losses()


# Slices


RESUMED = {
    "CLIP": ("--workers 1", 1),
    "SuperFLIP, two ranks": ("--workers 1 --superclip --force-patch-dropout 0.5", 2),
    "SuperCLIP, FSDP": ("--workers 0 --superclip --fsdp", 2),
}


@cases("flags, world_size", RESUMED)
def test_a_run_killed_in_a_slice_and_resumed_is_one_that_never_stopped(
    flags, world_size, short_run, tmp_path
):
    shards = write_shards(tmp_path / "shards", 6)
    flags = (
        f"{short_run} --train-data {shards} --dataset-type webdataset --train-num-samples "
        f"{2 * SHARD_SIZE} --batch-size 8 --superclip-slices 3 --epochs 4 {flags} "
        "--aug-cfg scale=(0.3,1.0) --resume latest"
    )
    ranks = {"world_size": world_size, "cwd": tmp_path}
    run_train(flags, "--name whole", **ranks)
    killed = run_ranks(functools.partial(traced_train, killed_at=(1, 1)), flags, **ranks)
    assert -signal.SIGKILL in [run.returncode for run in killed]
    assert "resuming checkpoint" in run_train(flags, **ranks).output
    assert_equal_runs(tmp_path / "logs/run", tmp_path / "logs/whole", epoch=4)
