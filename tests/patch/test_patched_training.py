"""What a patched OpenCLIP trains: what the launcher does on an unpatched
one, and stock without the flag."""

import functools
import pickle
import shutil
from importlib import import_module
from pathlib import Path

import pytest
from support import cases, parametrize, table
from support.data import IMAGE, MakesFolder, write_tar
from support.openclip_trees import (
    each_release,
    enter,
    openclip_train,
    openclip_train_without_plugins,
)
from support.openclip_trees import superclip_train_of as superclip_train
from support.plugins import EXAMPLES, install_plugin
from support.training_runs import completed, error_of, in_one_order, shell_words

openclip_train_in_one_order = in_one_order(openclip_train)
superclip_train_in_one_order = in_one_order(superclip_train)


@pytest.fixture(scope="session")
def losses(short_run, tmp_path_factory):
    """What a training printed of the losses, a string a step; each is run
    once, and must succeed."""

    @functools.cache
    def losses(train, tree, flags="", world_size=1):
        every = f"{short_run} --batch-size {32 // world_size} --logs none {flags}"
        folder = tmp_path_factory.mktemp("run")
        printed = completed(train, tree, every, world_size=world_size, cwd=folder)[0].losses()
        assert len(printed) == 2
        return printed

    return losses


@each_release
def test_patched_and_unpatched_losses_are_equal_and_stock_without_flag_or_plugins(
    release, released, patched, losses
):
    expected = losses(superclip_train, released[release], "--superclip")
    assert all("Class_loss" in line for line in expected)
    assert losses(openclip_train, patched[release], "--superclip") == expected
    stock = losses(openclip_train, released[release])
    assert losses(openclip_train, patched[release]) == stock
    assert losses(openclip_train_without_plugins, patched[release]) == stock


@cases("release, world_size, flags", table("training: patched training"))
def test_losses_are_those_of_the_launcher_and_without_our_flags_those_of_stock(
    release, world_size, flags, released, patched, teacher, shards, losses
):
    train = superclip_train_in_one_order if "--superclip" in flags else openclip_train_in_one_order
    flags = flags.format(teacher=teacher, shards=shards)
    expected = losses(train, released[release], flags, world_size)
    assert losses(openclip_train_in_one_order, patched[release], flags, world_size) == expected


@parametrize("train", [openclip_train, superclip_train])
def test_a_pickle_in_a_shard_is_not_loaded_by_a_patched_openclip(
    train, patched, short_run, tmp_path
):
    code = pickle.dumps(MakesFolder(tmp_path / "ran"))
    samples = [{"png": IMAGE, "txt": "a red cat", "pyd": code}] * 16
    write_tar(tmp_path / "0.tar", samples)
    flags = f"--train-data {tmp_path}/0.tar --train-num-samples 16 --dataset-type webdataset"
    flags = f"{short_run} {flags} --logs none"
    completed(train, patched["3.3.0"], f"{flags} --superclip", cwd=tmp_path)
    assert not (tmp_path / "ran").exists()
    completed(train, patched["3.3.0"], f"{flags} --name stock", cwd=tmp_path)
    assert (tmp_path / "ran").exists()


def superclip_train_that_cannot_replace(tree, *argv):
    """`superclip train` of a launcher that cannot replace a name."""
    enter(tree)
    import_module("openclip_superclip.trainer.hook_calls")._replace = None
    return import_module("openclip_superclip.__main__").main(["train", *shell_words(*argv)])


def test_the_launcher_replaces_nothing_in_a_patched_openclip(patched, losses):
    printed = losses(superclip_train_that_cannot_replace, patched["3.3.0"], "--superclip")
    assert printed == losses(openclip_train, patched["3.3.0"], "--superclip")


def train_as_a_rank(tree, *argv):
    """What a rank of `superclip run` does with the OpenCLIP in `tree`."""
    enter(tree)
    data = import_module("openclip_superclip.trainer.data")
    with data.listing_unreadable(Path("unreadable.jsonl"), epoch=int):
        return import_module("openclip_superclip.trainer.train").train(shell_words(*argv))


def test_a_run_on_a_patched_openclip_leaves_out_the_rows_without_a_long_caption(
    patched, csv_data, losses, tmp_path
):
    table = tmp_path / "train.csv"
    left_out = f"\n{csv_data.parent}/0.png\t" * 32
    table.write_text(csv_data.read_text().replace("\n", f"{left_out}\n", 1))
    flags = (
        f"--train-data {table} --superclip --superclip-captions long "
        "--superclip-long-caption title --superclip-missing-long skip"
    )
    printed = losses(train_as_a_rank, patched["3.3.0"], flags)
    assert printed == losses(openclip_train, patched["3.3.0"], "--superclip")


def test_the_example_plugins_train_alike_on_a_patched_and_an_unpatched_openclip(
    released, patched, losses, tmp_path
):
    flags = "--global-contrastive-size 100000 --sub-captions 2 --superclip --lora 4"
    found = []
    for train, tree in (
        (openclip_train, patched["3.3.0"]),
        (superclip_train, released["3.3.0"]),
    ):
        copy = shutil.copytree(tree, tmp_path / train.__name__)
        for folder in filter(Path.is_dir, EXAMPLES.iterdir()):
            install_plugin(copy, folder.name, f"from {folder.name} import *\n")
            shutil.copytree(folder, copy, dirs_exist_ok=True)
        found.append(losses(train, copy, flags))
    assert found[0] == found[1]
    assert all("Sub_caption_loss" in line and "Class_loss" in line for line in found[0])


def test_the_launcher_refuses_an_openclip_whose_patch_was_interrupted(patched, short_run, tmp_path):
    tree = shutil.copytree(patched["3.3.0"], tmp_path / "tree")
    (tree / "open_clip/hooks.py").unlink()
    error = error_of(superclip_train_that_cannot_replace, tree, short_run, cwd=tmp_path)
    assert "superclip patch apply" in error


def test_a_refusal_is_one_line_without_a_traceback(patched, short_run, tmp_path):
    flags = f"{short_run} --superclip --trace"
    error = error_of(openclip_train, patched["3.3.0"], flags, cwd=tmp_path)
    assert error.startswith("error: --trace cannot save a model with the class head")
    assert not (tmp_path / "logs").exists()
