"""The adapter follows OpenCLIP's signatures, not its versions: a copy whose
functions ask for more trains the same."""

import functools
import shutil
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
from support import DATA, parametrize
from support.openclip_trees import copy, superclip_train_of
from support.plugins import install_plugin, write_plugin
from support.training_runs import completed, in_one_order

from openclip_superclip.trainer import current

SITE = Path(open_clip.__file__).parent.parent
PATCHES = sorted((DATA / "moved_signatures").glob("*.patch"))  # of OpenCLIP 3.3


def moved(tree, patch):
    """The installed OpenCLIP, copied to a folder and changed."""
    for package in ("open_clip", "open_clip_train"):
        copy(SITE / package, tree / package)
    shutil.copytree(SITE / "open_clip/model_configs", tree / "open_clip/model_configs")
    shutil.copy(SITE / "open_clip/bpe_simple_vocab_16e6.txt.gz", tree / "open_clip")
    if patch is not None:
        subprocess.run(f"patch -p1 --silent -d {tree} -i {patch}".split(), check=True)
    return tree


@pytest.fixture(scope="module")
def losses(short_run, shards, tmp_path_factory):
    """The losses of four steps with a copy of OpenCLIP, patched, and what
    was printed."""

    @functools.cache
    def losses(patch=None, plugins=""):
        folder = tmp_path_factory.mktemp("moved")
        tree = moved(folder / "tree", patch)
        flags = (
            "--superclip --superclip-captions dual --superclip-long-caption txt --logs none "
            f"--train-data {shards} --dataset-type webdataset --train-num-samples 64"
        )
        train = in_one_order(functools.partial(train_with_plugins, tree, plugins))
        (run,) = completed(train, short_run, flags, cwd=folder)
        return run.losses(), run.output

    return losses


def train_with_plugins(tree, plugins, *argv):
    sys.path[:0] = filter(None, [plugins])
    return superclip_train_of(tree, *argv)


only_3 = pytest.mark.skipif(current().HAS_TASKS, reason="the changed lines are OpenCLIP 3's")


@only_3
@parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_an_openclip_whose_functions_ask_for_more_trains_the_same(patch, losses):
    ours, _ = losses(patch)
    expected, _ = losses()
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
    patch = DATA / "moved_signatures/create_loss_requires_the_model.patch"
    ours, output = losses(patch, plugins=str(old))
    assert "the loss is a ClipLoss" in output or "the loss is a SuperCLIPLoss" in output
    assert "the model is a SuperCLIP" in output
    assert ours == losses()[0]
