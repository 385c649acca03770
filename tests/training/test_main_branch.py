"""OpenCLIP's main branch, from a checkout: OPENCLIP_SOURCE=DIR pytest -m main."""

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import open_clip
import open_clip_train.main
import pytest
import torch
from open_clip_train import zero_shot
from support import WORDS
from support.data import SHARD_SIZE, write_shards
from support.models import MODELS, write_model, write_weights
from support.openclip_trees import openclip_train
from support.tiny_run import state, write_recipe
from support.training_runs import Run, in_one_order, load, run_ranks, stock_train, superclip_train

import openclip_superclip as superclip
from openclip_superclip.__main__ import main
from openclip_superclip.checkpoints.checkpoint import read_checkpoint
from openclip_superclip.checkpoints.run_outputs import read_log
from openclip_superclip.openclip import current

ROOT = Path(__file__).parents[2]
SHARDS = "--train-data {shards} --train-num-samples 64 --dataset-type webdataset"
DISTILLED = "--distill-model {teacher} --distill-pretrained {teacher}"

pytestmark = [
    pytest.mark.main,
    pytest.mark.skipif("OPENCLIP_SOURCE" not in os.environ, reason="needs OPENCLIP_SOURCE, a checkout of OpenCLIP"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """--model of small models, and of a teacher with weights."""
    root = tmp_path_factory.mktemp("models")
    models = {name: write_model(root / name, **MODELS[name]) for name in ("vit", "one-layer", "coca", "timm-vit")}
    models["teacher"] = write_model(root / "teacher")
    for name in ("teacher", "coca"):  # of CoCa's fresh weights some are what the memory held
        write_weights(models[name])
    return models


@pytest.fixture(scope="module")
def whole_weights(models, tmp_path_factory):
    """Returns the file of a model's weights, class head included."""
    folder = tmp_path_factory.mktemp("weights")

    @functools.cache
    def whole_weights(model: str) -> str:
        torch.manual_seed(1)
        made, _, _ = superclip.create_model_and_transforms(models[model])
        torch.save(made.state_dict(), folder / f"{model}.pt")
        return str(folder / f"{model}.pt")

    return whole_weights


def test_the_installed_openclip_is_the_main_branch():
    assert Path(open_clip.__file__).is_relative_to(Path(os.environ["OPENCLIP_SOURCE"]).resolve())
    assert current().HAS_TASKS


# Flag absent


def on_cpu_ranks(train):
    """`train` with a DDP that takes CPU ranks, to which OpenCLIP gives a device that torch refuses there."""

    def train_on_cpu_ranks(*argv):
        ddp = torch.nn.parallel.DistributedDataParallel
        torch.nn.parallel.DistributedDataParallel = lambda module, device_ids=None, **options: ddp(module, **options)
        return train(*argv)

    return train_on_cpu_ranks


STOCK = {  # flags, ranks
    "CLIP": ("", 1),
    "WebDataset": (SHARDS, 1),
    "SigLIP": ("--siglip", 1),
    "CoCa": ("--model {coca}", 1),
    "distillation": (DISTILLED, 1),
    "accumulation": ("--accum-freq 2", 1),
    "validation": ("--val-data {csv}", 1),
    "FLIP in amp_bf16": ("--precision amp_bf16 --grad-checkpointing --force-patch-dropout 0.5", 1),
    "a compiled step": ("--model {one-layer} --torchcompile --torchcompile-strategy step "
                        "--torchcompile-backend eager", 1),
    "FSDP": ("--fsdp", 2),
    "two ranks": ("", 2),
}  # fmt: skip


@pytest.mark.parametrize(("flags", "world_size"), STOCK.values(), ids=STOCK)
def test_without_the_flag_it_trains_as_the_main_branch_to_the_last_digit(
    flags, world_size, models, shards, csv_data, train_flags, tmp_path
):
    flags = flags.format(shards=shards, csv=csv_data, **models).split()
    argv = [*train_flags, "--batch-size", str(16 // world_size), "--logs", "none", *flags]
    stock = on_cpu_ranks(stock_train) if world_size > 1 and "--fsdp" not in flags else stock_train
    ours = run_ranks(in_one_order(superclip_train), *argv, "--name", "ours", world_size=world_size, cwd=tmp_path)
    theirs = run_ranks(in_one_order(stock), *argv, "--name", "stock", world_size=world_size, cwd=tmp_path)
    assert {run.returncode for run in [*ours, *theirs]} == {0}, ours[0].output[-2000:]
    assert len(theirs[0].losses()) == (2 if "--accum-freq" in flags else 4)
    assert ours[0].losses() == theirs[0].losses()
    assert _metrics(ours[0]) == _metrics(theirs[0])


def _metrics(run) -> list[str]:
    return [line.partition("Eval Epoch")[2] for line in run.output.splitlines() if "Eval Epoch" in line]


# The losses of OpenCLIP 3


ONE_STEP = {  # --model, flags, ranks on main
    "CLIP": ("vit", "", 1),
    "SigLIP": ("vit", "--siglip", 1),
    "CoCa": ("coca", "", 1),
    "timm's ViT": ("timm-vit", "", 1),
    "distillation": ("vit", DISTILLED, 1),
    "accumulation": ("vit", "--accum-freq 2", 1),
    "WebDataset": ("vit", SHARDS, 1),
    "two captions": ("vit", f"{SHARDS} --superclip-captions dual --superclip-long-caption txt "
                     "--superclip-long-context 30", 1),
    "two ranks": ("vit", "", 2),
    "FSDP": ("vit", "--fsdp", 2),
}  # fmt: skip


@pytest.mark.parametrize(("model", "flags", "world_size"), ONE_STEP.values(), ids=ONE_STEP)
def test_one_step_from_equal_weights_has_the_losses_of_the_released_openclip(
    model, flags, world_size, models, whole_weights, shards, train_flags, tmp_path
):
    flags = flags.format(shards=shards, **models).split()
    batch_size = 64 // world_size // (2 if "--accum-freq" in flags else 1)
    argv = [*train_flags, "--model", models[model], "--pretrained", whole_weights(model), "--superclip", *flags]
    argv += ["--batch-size", str(batch_size), "--precision", "fp32", "--aug-cfg", "scale=(1.0,1.0)", "ratio=(1.0,1.0)"]
    runs = run_ranks(superclip_train, *argv, world_size=world_size, cwd=tmp_path)
    assert [run.returncode for run in runs] == [0] * world_size, runs[0].output[-3000:]
    argv = [*filter(lambda flag: flag != "--fsdp", argv), "--batch-size", str(batch_size * world_size)]
    released = released_train(*argv, cwd=tmp_path)
    names = {"Contrastive_loss", "Class_loss", "Loss"} | ({"Caption_loss"} if model == "coca" else set())
    assert names <= set(re.findall(r"(\w*oss): ", runs[0].losses()[0]))
    for name in names:
        assert len(released.values(name)) == 1
        assert runs[0].values(name) == pytest.approx(released.values(name), rel=3e-5), name


def released_train(*argv: str, cwd: Path) -> Run:
    """`superclip train` with the OpenCLIP that is installed, in an interpreter of its own."""
    command = [sys.executable, "-m", "openclip_superclip", "train", *argv, "--name", "released"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "open_clip_train.main.create_loss" in done.stdout
    return Run(0, done.stdout + done.stderr)


# More steps


@pytest.fixture(scope="module")
def eager(models, train_flags, tmp_path_factory) -> list[str]:
    """The losses of a run that is not compiled."""
    argv = [*train_flags, "--model", models["one-layer"], "--superclip", "--precision", "fp32"]
    (run,) = run_ranks(superclip_train, *argv, cwd=tmp_path_factory.mktemp("eager"))
    assert run.returncode == 0, run.output[-2000:]
    return run.values("Class_loss")


@pytest.mark.parametrize("strategy", ["model", "task", "step"])
def test_every_compile_strategy_trains_with_the_same_losses(strategy, eager, models, train_flags, tmp_path):
    argv = [*train_flags, "--model", models["one-layer"], "--superclip", "--precision", "fp32", "--torchcompile"]
    argv += ["--torchcompile-strategy", strategy, "--torchcompile-backend", "aot_eager"]
    (run,) = run_ranks(superclip_train, *argv, cwd=tmp_path)
    assert run.returncode == 0, run.output[-2000:]
    assert len(eager) == 4
    assert run.values("Class_loss") == pytest.approx(eager, rel=1e-3)


def test_fsdp_trains_as_ddp_and_its_checkpoint_is_exported(tiny_model, train_flags, tmp_path):
    argv = [*train_flags, "--superclip", "--precision", "fp32", "--batch-size", "32", "--epochs", "2"]
    folders = {}
    for name, flags in (("ddp", ""), ("fsdp", "--fsdp")):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        runs = run_ranks(superclip_train, *argv, *flags.split(), world_size=2, cwd=folders[name])
        assert [run.returncode for run in runs] == [0, 0], runs[0].output[-2000:]
    files = [folder / "logs/run/checkpoints/epoch_2.pt" for folder in folders.values()]
    ddp, fsdp = map(read_checkpoint, files)
    assert ddp.weights.keys() == fsdp.weights.keys()
    assert ddp.epoch == fsdp.epoch == 2
    for name, weight in ddp.weights.items():
        torch.testing.assert_close(fsdp.weights[name], weight, rtol=1e-4, atol=1e-5, msg=name)
    assert ddp.weights["statistics.num_captions"] == 2 * 64
    assert main(["export", str(files[1]), "--out", str(tmp_path / "exported"), "--with-head"]) == 0
    exported = read_checkpoint(tmp_path / "exported")
    assert torch.equal(exported.weights["class_head.weight"], fsdp.weights["class_head.weight"])
    texts = ["a cat!", "!!! (!", "a red dog and a house", ""]
    tokens = [open_clip.get_tokenizer(name)(texts) for name in (tiny_model, f"local-dir:{tmp_path / 'exported'}")]
    assert torch.equal(*tokens)  # with the padding that the text tower knows


def test_naflex_trains_and_its_model_exports(models, train_flags, tmp_path):
    shards = write_shards(tmp_path / "shards", 2)
    argv = [*train_flags, "--train-data", shards, "--dataset-type", "webdataset", "--train-num-samples"]
    argv += [str(2 * SHARD_SIZE), "--model", models["vit"], "--superclip", "--use-naflex", "--naflex-patch-sizes", "8"]
    argv += ["--naflex-seq-lens", "9", "16", "--naflex-max-tokens-per-batch", "200"]
    (run,) = run_ranks(superclip_train, *argv, cwd=tmp_path)
    assert run.returncode == 0, run.output[-2000:]
    assert run.values("Class_loss")
    checkpoint = tmp_path / "logs/run/checkpoints/epoch_1.pt"
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "exported"), "--with-head"]) == 0
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'exported'}")
    assert type(model.visual.trunk).__name__ == "NaFlexVit"


def train_on_five_classes(*argv: str) -> int:
    """`superclip train` if ImageNet has five classes."""
    zero_shot.IMAGENET_CLASSNAMES = WORDS[:5]
    zero_shot.OPENAI_IMAGENET_TEMPLATES = open_clip.OPENAI_IMAGENET_TEMPLATES[:2]
    return superclip_train(*argv)


def test_zero_shot_accuracy_is_measured_on_imagenet_with_fsdp(csv_data, train_flags, tmp_path):
    for index, word in enumerate(WORDS[:5]):
        (tmp_path / "imagenet" / word).mkdir(parents=True)
        shutil.copy(csv_data.parent / f"{index}.png", tmp_path / "imagenet" / word)
    argv = [*train_flags, "--superclip", "--precision", "fp32", "--imagenet-val", str(tmp_path / "imagenet")]
    runs = run_ranks(train_on_five_classes, *argv, "--fsdp", world_size=2, cwd=tmp_path)
    assert [run.returncode for run in runs] == [0, 0], runs[0].output[-2000:]
    assert "imagenet-zeroshot-val-top5: 1.0000" in runs[0].output


def test_plan_writes_flags_that_the_main_branch_takes_and_run_trains_a_recipe_to_its_end(tmp_path):
    recipe, out = write_recipe(tmp_path, passes=1), tmp_path / "run"
    assert main(["plan", str(recipe), "--device", "cpu"]) == 0
    command = [sys.executable, "-m", "openclip_superclip", "run", str(recipe), "--out", str(out), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert state(out)["state"] == "finished"
    points = read_log(out / "out.log")
    assert len(points) == 12
    assert {"contrastive_loss", "class_loss", "samples_per_second"} <= points[-1].keys()


# Patched


@pytest.fixture(scope="module")
def patched(tmp_path_factory) -> Path:
    """The checkout, patched."""
    tree = tmp_path_factory.mktemp("patched") / "src"
    shutil.copytree(Path(os.environ["OPENCLIP_SOURCE"]) / "src", tree, ignore=shutil.ignore_patterns("__pycache__"))
    before = {file: file.read_bytes() for file in tree.rglob("*") if file.is_file()}
    assert main(["patch", "apply", "--source", str(tree.parent)]) == 0
    assert main(["patch", "revert", "--source", str(tree.parent)]) == 0
    assert {file: file.read_bytes() for file in tree.rglob("*") if file.is_file()} == before
    assert main(["patch", "apply", "--source", str(tree.parent)]) == 0
    return tree


def openclip_train_in_one_order(tree: Path, *argv: str) -> None:
    in_one_order(functools.partial(openclip_train, tree))(*argv)


PATCHED = {
    "stock": "",
    "CLIP": "--superclip",
    "CoCa": "--superclip --model {coca}",
    "WebDataset, two captions": f"--superclip {SHARDS} --superclip-captions dual --superclip-long-caption txt",
    "a table, two captions": "--superclip --superclip-captions dual --superclip-long-caption filepath",
    "slices": "--superclip --train-data {shards} --train-num-samples 32 --dataset-type webdataset "
              "--superclip-slices 2 --epochs 2",
}  # fmt: skip


@pytest.mark.parametrize("flags", PATCHED.values(), ids=PATCHED)
def test_a_patched_main_branch_has_the_losses_of_the_launcher(flags, patched, models, shards, train_flags, tmp_path):
    argv = [*train_flags, "--logs", "none", "--precision", "fp32", *flags.format(shards=shards, **models).split()]
    (ours,) = run_ranks(in_one_order(superclip_train), *argv, "--name", "ours", cwd=tmp_path)
    (theirs,) = run_ranks(openclip_train_in_one_order, patched, *argv, "--name", "patched", cwd=tmp_path)
    assert ours.returncode == theirs.returncode == 0, theirs.output[-3000:]
    assert len(ours.losses()) >= 2
    assert theirs.losses() == ours.losses()


# Slices


def killed_train(*argv: str) -> int:
    """`superclip train`, killed before the second batch of the second slice."""
    get_data = open_clip_train.main.get_data

    def get_killing_data(*args, **options):
        data = get_data(*args, **options)
        loader, epoch = data["train"].dataloader, data["train"].shared_epoch

        class Killing:
            num_batches, num_samples = loader.num_batches, loader.num_samples

            def __iter__(self):
                for number, batch in enumerate(loader):
                    if (epoch.get_value(), number) == (1, 1):
                        os.kill(os.getpid(), signal.SIGKILL)
                    yield batch

        data["train"].dataloader = Killing()
        return data

    open_clip_train.main.get_data = get_killing_data
    return superclip_train(*argv)


RESUMED = {
    "CLIP": ("--workers 1", 1),
    "SuperFLIP, two ranks": ("--workers 1 --superclip --force-patch-dropout 0.5", 2),
    "SuperCLIP, FSDP": ("--workers 0 --superclip --fsdp", 2),
}


@pytest.mark.parametrize(("flags", "world_size"), RESUMED.values(), ids=RESUMED)
def test_a_run_killed_in_a_slice_and_resumed_is_one_that_never_stopped(flags, world_size, train_flags, tmp_path):
    shards = write_shards(tmp_path / "shards", 6)
    argv = [*train_flags, "--train-data", shards, "--dataset-type", "webdataset", "--train-num-samples"]
    argv += [str(2 * SHARD_SIZE), "--batch-size", "8", "--superclip-slices", "3", "--epochs", "4", *flags.split()]
    argv += ["--aug-cfg", "scale=(0.3,1.0)", "--resume", "latest"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    ranks = functools.partial(run_ranks, world_size=world_size)
    runs = ranks(superclip_train, *argv, cwd=whole)
    assert [run.returncode for run in runs] == [0] * world_size, runs[0].output[-2000:]
    assert -signal.SIGKILL in [run.returncode for run in ranks(killed_train, *argv, cwd=killed)]
    runs = ranks(superclip_train, *argv, cwd=killed)
    assert [run.returncode for run in runs] == [0] * world_size, runs[0].output[-2000:]
    assert "resuming checkpoint" in runs[0].output
    assert _bits(load(killed / "logs/run", 4)) == _bits(load(whole / "logs/run", 4))


def _bits(checkpoint: dict) -> dict[str, bytes]:
    """Every bit of weights, counts and optimizer."""
    tensors = dict(checkpoint["state_dict"])
    for index, values in checkpoint["optimizer"]["state"].items():
        tensors |= {f"{index} {name}": value for name, value in values.items()}
    return {name: value.numpy().tobytes() for name, value in tensors.items()}
