"""The adapter follows OpenCLIP's signatures, not its versions: a copy whose functions ask for
more trains the same."""

import functools
import shutil
import sys
from pathlib import Path

import open_clip
import pytest
from support import cases
from support.openclip_trees import copy, superclip_train_of
from support.plugins import install_plugin, write_plugin
from support.training_runs import completed, in_one_order

from openclip_superclip.openclip import current

SITE = Path(open_clip.__file__).parent.parent
MOVED = {  # of OpenCLIP 3.3: file, what is replaced, and by what
    "create_loss requires the model": [
        (
            "open_clip/factory.py",
            "def create_loss(args):\n",
            "def create_loss(args, model):\n    model.visual\n",
        ),
        ("open_clip_train/main.py", "create_loss(args)\n", "create_loss(args, model=model)\n"),
    ],
    "loaders take model_traits": [
        (
            "open_clip_train/data.py",
            ", epoch=0, tokenizer=None):",
            ", epoch=0, tokenizer=None, *, model_traits):",
        ),
        (
            "open_clip_train/data.py",
            "floor=False, tokenizer=None):",
            "floor=False, tokenizer=None, *, model_traits):",
        ),
        (
            "open_clip_train/data.py",
            "is_train=True, epoch=epoch,",
            "is_train=True, epoch=epoch, model_traits=1,",
        ),
        (
            "open_clip_train/data.py",
            "def get_data(args, preprocess_fns, epoch=0, tokenizer=None, *, model_traits):",
            "def get_data(args, preprocess_fns, epoch=0, tokenizer=None):",
        ),
    ],
    "get_dataset_fn takes a third argument": [
        (
            "open_clip_train/data.py",
            "def get_dataset_fn(data_path, dataset_type):",
            "def get_dataset_fn(data_path, dataset_type, *, model_traits):",
        ),
        ("open_clip_train/data.py", "args.dataset_type)(", "args.dataset_type, model_traits=1)("),
    ],
    "train_one_epoch has another order": [
        (
            "open_clip_train/train.py",
            "def train_one_epoch(model, data, loss, epoch,",
            "def train_one_epoch(epoch, model, data, loss, ",
        ),
        (
            "open_clip_train/main.py",
            "train_one_epoch(model, data, loss, epoch,",
            "train_one_epoch(epoch, model, data, loss,",
        ),
    ],
}


def moved(tree: Path, changes):
    """The installed OpenCLIP, copied to a folder and changed."""
    for package in ("open_clip", "open_clip_train"):
        copy(SITE / package, tree / package)
    shutil.copytree(SITE / "open_clip/model_configs", tree / "open_clip/model_configs")
    shutil.copy(SITE / "open_clip/bpe_simple_vocab_16e6.txt.gz", tree / "open_clip")
    for file, old, new in changes:
        text = (tree / file).read_text()
        assert old in text, f"{file} has no {old}"
        (tree / file).write_text(text.replace(old, new))
    return tree


@pytest.fixture(scope="module")
def losses(short_run, shards, tmp_path_factory):
    """The losses of four steps with a copy of OpenCLIP that is changed so, and what was printed."""

    @functools.cache
    def losses(changes, plugins: str = ""):
        folder = tmp_path_factory.mktemp("moved")
        tree = moved(folder / "tree", changes)
        flags = (
            "--superclip --superclip-captions dual --superclip-long-caption txt --logs none "
            f"--train-data {shards} --dataset-type webdataset --train-num-samples 64"
        )
        train = in_one_order(functools.partial(train_with_plugins, tree, plugins))
        (run,) = completed(train, short_run, flags, cwd=folder)
        return run.losses(), run.output

    return losses


def train_with_plugins(tree: Path, plugins: str, *argv: str):
    sys.path[:0] = filter(None, [plugins])
    return superclip_train_of(tree, *argv)


only_3 = pytest.mark.skipif(current().HAS_TASKS, reason="the changed lines are OpenCLIP 3's")


@only_3
@cases("changes", MOVED)
def test_an_openclip_whose_functions_ask_for_more_trains_the_same(changes, losses):
    ours, _ = losses(tuple(changes))
    expected, _ = losses(())
    assert len(expected) == 4
    assert ours == expected


WITH_MODEL = """
from open_clip.hooks import hookimpl


@hookimpl(wrapper=True)
def open_clip_create_loss(args, model):
    loss = yield
    print("the model is a", type(model).__name__)
    return loss
"""


@only_3
def test_a_plugin_may_ask_for_the_model_or_leave_it_out_and_gets_openclips_own_loss(
    losses, tmp_path
):
    old = write_plugin(tmp_path, 'print("the loss is a", type(loss).__name__)\nreturn loss\n')
    install_plugin(tmp_path, "with_model", WITH_MODEL)
    ours, output = losses(tuple(MOVED["create_loss requires the model"]), plugins=str(old))
    assert "the loss is a ClipLoss" in output or "the loss is a SuperCLIPLoss" in output
    assert "the model is a SuperCLIP" in output
    assert ours == losses(())[0]
