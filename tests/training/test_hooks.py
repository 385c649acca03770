"""The hooks do what their docstrings say, for any plugin and for several at once."""

import argparse
import ast
import functools
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import open_clip
import open_clip_train.params
import pluggy
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from support.openclip_trees import enter
from support.plugins import BROKEN, install_plugin
from support.training_runs import run_ranks, superclip_train

from openclip_superclip import SuperCLIP, SuperCLIPLoss, hooks, plugin
from openclip_superclip.openclip import unpatched

HOOKS = sorted(name for name, value in vars(hooks).items() if hasattr(value, "open_clip_spec"))

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
}


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_documented(name):
    assert len((getattr(hooks, name).__doc__ or "").split()) > 5


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_has_a_test(name):
    assert any(test.startswith(f"test_{name}_") for test in globals())


def test_the_contract_imports_nothing_but_pluggy_and_the_standard_library():
    imported = set()
    for node in ast.walk(ast.parse(Path(hooks.__file__).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.partition(".")[0])
    assert "pluggy" in imported
    assert imported - {"pluggy"} <= sys.stdlib_module_names


def test_the_plugin_is_found_by_its_entry_point():
    manager = hooks.plugin_manager()
    assert manager.get_plugin("superclip") is plugin
    assert "openclip-superclip" in [dist.project_name for _, dist in manager.list_plugin_distinfo()]


def test_without_a_plugin_every_hook_answers_nothing():
    manager = pluggy.PluginManager("open_clip")
    manager.add_hookspecs(hooks)
    args = argparse.Namespace()
    assert manager.hook.open_clip_add_options(parser=argparse.ArgumentParser()) == []
    assert manager.hook.open_clip_check_options(args=args) == []
    assert manager.hook.open_clip_model_kwargs(args=args) == []
    assert manager.hook.open_clip_select_model_class(model_class=CLIP, model_cfg={}) is None
    assert manager.hook.open_clip_create_loss(args=args) is None
    assert manager.hook.open_clip_caption_tokens(args=args, tokenizer=None, shared_epoch=None) is None
    assert manager.hook.open_clip_data_order(args=args, shared_epoch=None) is None
    assert manager.hook.open_clip_epoch_end(args=args, model=None, epoch=0) == []


@pytest.fixture
def register(monkeypatch):
    """Registers one more plugin, with the given hooks, beside ours; until the test ends."""
    manager = hooks.plugin_manager.__wrapped__()
    monkeypatch.setattr(hooks, "plugin_manager", lambda: manager)

    def register(name, wrapper=False, **functions):
        module = types.ModuleType(name)
        for function_name, function in functions.items():
            setattr(module, function_name, hooks.hookimpl(function, wrapper=wrapper))
        manager.register(module, name)
        manager.check_pending()

    return register


def test_open_clip_add_options_adds_flags_to_openclips_command_line(register, parse_args):
    register("toy", open_clip_add_options=lambda parser: parser.add_argument("--toy", type=int, default=1) and None)
    args = parse_args(["--toy", "3", "--batch-size", "7"])
    assert (args.toy, args.batch_size) == (3, 7)
    assert parse_args([]).toy == 1


def test_open_clip_check_options_may_refuse_the_command_line(register, parse_args):
    def check(args):
        if args.batch_size > 5:
            raise SystemExit("error: --batch-size is more than 5")

    register("toy", open_clip_check_options=check)
    with pytest.raises(SystemExit, match="--batch-size is more than 5"):
        parse_args(["--batch-size", "6"])
    assert parse_args(["--batch-size", "5"]).batch_size == 5


def test_open_clip_model_kwargs_of_all_plugins_are_merged(register):
    register("one", open_clip_model_kwargs=lambda args: {"a": args.value})
    register("two", open_clip_model_kwargs=lambda args: {"b": 2, "c": 3})
    register("three", open_clip_model_kwargs=lambda args: None)
    assert hooks.model_kwargs(argparse.Namespace(value=1)) == {"a": 1, "b": 2, "c": 3}


def test_open_clip_model_kwargs_that_two_plugins_set_are_an_error(register):
    register("one", open_clip_model_kwargs=lambda args: {"a": 1, "b": 1})
    register("two", open_clip_model_kwargs=lambda args: {"b": 1, "c": 1})
    with pytest.raises(ValueError, match=r"two open_clip plugins set the model argument b$"):
        hooks.model_kwargs(argparse.Namespace())


LOST = """
import json

from open_clip.hooks import hookimpl


@hookimpl
def open_clip_caption_tokens(args, tokenizer, shared_epoch):
    def tokens(sample):
        caption = sample["txt" if "__key__" in sample else "title"]
        print(json.dumps({"epoch": shared_epoch.get_value(), "leaves out": "cat" in caption}), flush=True)
        return None if "cat" in caption else tokenizer([caption])[0]

    tokens.keeps = lambda row: "cat" not in row["title"]
    return tokens
"""


@pytest.mark.parametrize("kind", ["csv", "webdataset"])
def test_open_clip_caption_tokens_makes_or_refuses_every_training_sample_and_knows_the_epoch(
    kind, shards, csv_data, train_flags, tmp_path
):
    install_plugin(tmp_path, "lost", LOST)
    data = str(csv_data) if kind == "csv" else shards
    flags = ["--dataset-type", kind, "--train-data", data, "--val-data", data, "--train-num-samples", "64"]
    argv = [*train_flags, *flags, "--val-num-samples", "64", "--epochs", "2", "--logs", "none"]
    (run,) = run_ranks(functools.partial(train_with, tmp_path), *argv, cwd=tmp_path)
    assert run.returncode == 0, run.output
    asked = re.findall(r'{"epoch": (\d), "leaves out": (\w+)}', run.output)
    if kind == "csv":  # of which rows are left out before training
        (left_out, rows) = re.search(r"(\d+) of (\d+) rows are left out", run.output).groups()
        assert 0 < int(left_out) < int(rows) == 64
        assert set(asked) == {("0", "false"), ("1", "false")}
        return
    assert set(asked) == {("0", "true"), ("0", "false"), ("1", "true"), ("1", "false")}
    assert asked.count(("0", "false")) >= 64
    assert len(run.losses()) == 8


ENDS = """
from open_clip.hooks import hookimpl


@hookimpl
def open_clip_epoch_end(args, model, epoch):
    print(f"ended: epoch {epoch} of {type(model).__name__}", flush=True)
"""


def test_open_clip_epoch_end_is_told_after_the_steps_of_every_epoch(shards, train_flags, tmp_path):
    install_plugin(tmp_path, "ends", ENDS)
    data = ["--dataset-type", "webdataset", "--train-data", shards, "--train-num-samples", "64"]
    argv = [*train_flags, *data, "--epochs", "2", "--logs", "none"]
    (run,) = run_ranks(functools.partial(train_with, tmp_path), *argv, cwd=tmp_path)
    assert run.returncode == 0, run.output
    told = re.findall(r"Train Epoch: (\d)|ended: epoch (\d) of CLIP", run.output)
    assert [step or f"{end} ended" for step, end in dict.fromkeys(told)] == ["0", "0 ended", "1", "1 ended"]


IN_ORDER = """
from open_clip.hooks import hookimpl


@hookimpl
def open_clip_data_order(args, shared_epoch):
    def shards(urls):
        urls = sorted(urls, key=lambda shard: shard["url"], reverse=shared_epoch.get_value() % 2)
        print("shards", *(shard["url"][-5] for shard in urls))
        return iter(urls)

    def samples(samples):
        print("samples")
        return samples

    return shards, samples


@hookimpl
def open_clip_caption_tokens(args, tokenizer, shared_epoch):
    def tokens(sample):
        print("sample", shared_epoch.get_value(), sample["__key__"])
        return tokenizer([sample["txt"]])[0]

    return tokens
"""


@pytest.fixture
def train_in_order(shards, train_flags, tmp_path):
    """Trains two epochs with the plugin IN_ORDER."""
    install_plugin(tmp_path, "in_order", IN_ORDER)

    def train(*flags):
        argv = [*train_flags, "--dataset-type", "webdataset", "--train-data", shards, "--train-num-samples", "64"]
        argv += ["--epochs", "2", "--logs", "none", *flags]
        (run,) = run_ranks(functools.partial(train_with, tmp_path), *argv, cwd=tmp_path)
        assert run.returncode == 0, run.output
        assert len(run.losses()) == 8
        return run

    return train


def test_open_clip_data_order_stands_for_both_of_openclips_shuffles_in_every_epoch(train_in_order):
    run = train_in_order()
    assert re.findall(r"^shards .*|^samples$", run.output, re.MULTILINE) == [
        "shards 0 1",
        "samples",
        "shards 1 0",
        "samples",
    ]
    in_file = [[str(picture) for picture in range(shard, 64, 2)] for shard in range(2)]
    for epoch, expected in enumerate(([*in_file[0], *in_file[1]], [*in_file[1], *in_file[0]])):
        assert re.findall(rf"^sample {epoch} (\d+)$", run.output, re.MULTILINE) == expected


def test_open_clip_data_order_is_not_asked_where_shards_are_drawn_with_replacement(train_in_order):
    assert not re.search("^shards|^samples", train_in_order("--dataset-resampled").output, re.MULTILINE)


class ToyCLIP(CLIP):
    def __init__(self, *args, toy, **kwargs):
        super().__init__(*args, **kwargs)
        self.toy = toy


@pytest.fixture
def create_tiny_model(monkeypatch):
    """open_clip.create_model of a tiny model, with more of its configuration as arguments."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", TINY)

    def create(**kwargs):
        with unpatched.plugins_model_class():
            return open_clip.create_model("tiny", **kwargs)

    return create


def select_toy(model_class, model_cfg):
    return ToyCLIP if model_class is CLIP and "toy" in model_cfg else None


def test_open_clip_select_model_class_is_told_class_and_configuration(register, create_tiny_model):
    asked = []

    def select(model_class, model_cfg):
        asked.append((model_class, dict(model_cfg)))

    register("toy", open_clip_select_model_class=select)
    create_tiny_model(init_logit_bias=-10.0)
    ((model_class, model_cfg),) = asked
    assert model_class is CLIP
    assert model_cfg == {**TINY, "init_logit_bias": -10.0, "cast_dtype": None}


def test_open_clip_select_model_class_gives_the_class_that_is_built(register, create_tiny_model):
    register("toy", open_clip_select_model_class=select_toy)
    model = create_tiny_model(toy="yes")
    assert type(model) is ToyCLIP
    assert model.toy == "yes"


def test_open_clip_select_model_class_keeps_the_class_where_no_plugin_answers(register, create_tiny_model):
    register("toy", open_clip_select_model_class=select_toy)
    assert type(create_tiny_model()) is CLIP
    assert type(create_tiny_model(force_custom_text=True)) is CustomTextCLIP


def test_open_clip_select_model_class_serves_two_plugins_side_by_side(register, create_tiny_model):
    register("toy", open_clip_select_model_class=select_toy)
    assert type(create_tiny_model(toy=1)) is ToyCLIP
    assert type(create_tiny_model(superclip={})) is SuperCLIP


def test_open_clip_create_loss_takes_the_first_answer(register):
    register("silent", open_clip_create_loss=lambda args: None)
    register("one", open_clip_create_loss=lambda args: f"loss of {args.name}")
    assert hooks.plugin_manager().hook.open_clip_create_loss(args=argparse.Namespace(name="one")) == "loss of one"


def test_open_clip_create_loss_of_the_later_name_replaces_and_wrappers_add_around_it(register):
    def adding(what):
        def create(args):
            return f"{what} + {(yield)}"

        return create

    register("a", open_clip_create_loss=lambda args: "a's")
    register("b", wrapper=True, open_clip_create_loss=adding("b's"))
    register("c", open_clip_create_loss=lambda args: "c's")
    register("d", wrapper=True, open_clip_create_loss=adding("d's"))
    args = argparse.Namespace(superclip=False)
    assert hooks.plugin_manager().hook.open_clip_create_loss(args=args) == "d's + b's + c's"


def test_the_class_loss_is_added_to_a_loss_that_replaces_openclips(register):
    replacement = torch.nn.Identity()
    register("other", open_clip_create_loss=lambda args: replacement)
    args = argparse.Namespace(
        superclip=True, dataset_type="csv", rank=0, world_size=1, siglip=False, local_loss=False, gather_with_grad=False
    )
    loss = hooks.plugin_manager().hook.open_clip_create_loss(args=args)
    assert type(loss) is SuperCLIPLoss
    assert loss.contrastive is replacement


def test_open_clip_create_loss_is_openclips_own_where_no_plugin_answers():
    assert hooks.plugin_manager().hook.open_clip_create_loss(args=argparse.Namespace()) is None


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_plugin_that_fails_to_load_is_named_in_one_line(source, reason, tmp_path, monkeypatch):
    install_plugin(tmp_path, "broken", source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_module", raising=False)
    with pytest.raises(RuntimeError) as raised:
        hooks.plugin_manager.__wrapped__()
    message = str(raised.value)
    assert message.startswith("open_clip plugin 'broken' failed to load: ")
    assert reason in message
    assert "\n" not in message


SECOND_PLUGIN = """
from openclip_superclip.hooks import hookimpl


@hookimpl
def open_clip_add_options(parser):
    parser.add_argument("--second-weight", type=float, help="weight of the second loss")


@hookimpl(wrapper=True)
def open_clip_create_loss(args):
    loss = yield
    if args.second_weight is None:
        return loss
    from open_clip import create_loss
    from torch import nn

    class SecondLoss(nn.Module):
        def __init__(self, first):
            super().__init__()
            self.first = first

        def forward(self, *, output_dict, **outputs):
            second = args.second_weight * outputs["image_features"].square().sum(dim=1).mean()
            return {**self.first(**outputs, output_dict=True), "second_loss": second}

    return SecondLoss(loss or create_loss(args))
"""


@pytest.fixture(scope="module")
def second_plugin(tmp_path_factory):
    """A folder with another plugin, installed there, that adds a flag and a loss."""
    folder = tmp_path_factory.mktemp("site-packages")
    install_plugin(folder, "second", SECOND_PLUGIN)
    return folder


def train_with(folder, *argv):
    """`superclip train` in a process that has also the plugins in `folder`."""
    sys.path.insert(0, str(folder))
    hooks.plugin_manager.cache_clear()
    return superclip_train(*argv)


COMBINATIONS = {
    "neither": ([], {"Contrastive_loss", "Loss"}),
    "ours alone": (["--superclip"], {"Contrastive_loss", "Class_loss", "Loss"}),
    "the other alone": (["--second-weight", "0.5"], {"Contrastive_loss", "Second_loss", "Loss"}),
    "both": (["--superclip", "--second-weight", "0.5"], {"Contrastive_loss", "Class_loss", "Second_loss", "Loss"}),
}


@pytest.mark.parametrize(("flags", "losses"), COMBINATIONS.values(), ids=COMBINATIONS.keys())
def test_a_second_plugin_trains_beside_ours(flags, losses, second_plugin, train_flags, tmp_path):
    train = functools.partial(train_with, second_plugin)
    (run,) = run_ranks(train, *train_flags, *flags, cwd=tmp_path)
    assert run.returncode == 0, run.output
    assert len(run.losses()) == 4
    for line in run.losses():
        printed = dict(re.findall(r"(\w*loss): (\S+)", line, flags=re.IGNORECASE))
        assert printed.keys() == losses
        assert float(printed.get("Second_loss", 0.5)) == 0.5  # times the squared length of unit vectors


def test_help_of_a_fresh_process_shows_the_flags_of_both_plugins(second_plugin):
    run = subprocess.run(
        [sys.executable, "-m", "openclip_superclip", "train", "--help"],
        env={**os.environ, "PYTHONPATH": str(second_plugin)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "--superclip-weight" in run.stdout
    assert "--second-weight" in run.stdout
    assert "weight of the second loss" in run.stdout


def superclip_command(*argv: str, cwd: Path) -> subprocess.CompletedProcess:
    """`superclip train` in an interpreter of its own, to the end of it."""
    command = [sys.executable, "-m", "openclip_superclip", "train", *argv]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_a_run_that_is_refused_late_says_one_line_more_and_leaves_its_name_to_the_corrected_command(
    train_flags, tmp_path
):
    argv = [*train_flags, "--superclip", "--lock-image", "--lock-image-unlocked-groups"]
    refused = superclip_command(*argv, "1", cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("error: --lock-image-unlocked-groups 1 unlocks nothing")
    assert "TorchDynamo" not in refused.stdout + refused.stderr
    assert not (tmp_path / "logs/run").exists()
    corrected = superclip_command(*argv, "2", cwd=tmp_path)
    assert corrected.returncode == 0, corrected.stderr[-2000:]


def test_a_refused_run_leaves_what_was_there_before(train_flags, tmp_path):
    (tmp_path / "logs/run/checkpoints").mkdir(parents=True)
    argv = [*train_flags, "--superclip", "--lock-image", "--lock-image-unlocked-groups", "1"]
    (run,) = run_ranks(superclip_train, *argv, cwd=tmp_path)
    assert run.returncode == 1
    assert (tmp_path / "logs/run/checkpoints").is_dir()


def test_a_mistyped_flag_is_told_in_one_line_by_a_patched_openclip_too(parse_args, capsys):
    unpatched.tell_mistakes_in_one_line()
    with pytest.raises(SystemExit) as refused:
        open_clip_train.params.parse_args(["--batch-sise", "4"])
    assert refused.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: unrecognized arguments: --batch-sise 4 (superclip train --help lists every flag)"
    ]


def train_with_openclip(tree, *argv):
    enter(tree)
    return superclip_train(*argv)


def test_an_openclip_of_before_3_is_refused_with_its_version(train_flags, tmp_path):
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip/__init__.py").touch()
    (tmp_path / "open_clip/version.py").write_text("__version__ = '2.32.0'\n")
    (run,) = run_ranks(train_with_openclip, tmp_path, *train_flags, cwd=tmp_path)
    assert run.returncode == 1
    (error,) = run.errors()
    assert error.startswith("error: open_clip_torch 2.32.0 is too old: expected 3.0 or later, pip install ")
