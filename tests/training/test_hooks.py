"""The hooks do what their docstrings say, for any plugin and for several at
once."""

import argparse
import functools
import re
import sys
import types
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from support import cases, read_json
from support.pages import PAGES
from support.plugins import install_plugin
from support.training_runs import completed, load, train_with

from openclip_superclip import SuperCLIP, hooks
from openclip_superclip.plugin import Plugin
from openclip_superclip.trainer import hook_calls

HOOKS = sorted(name for name, value in vars(hooks).items() if hasattr(value, "open_clip_spec"))


def test_every_hook_is_documented_and_has_a_test():
    assert (
        sorted(re.findall(r"^\| `(open_clip_\w+)`", PAGES["docs/plugins.md"], re.MULTILINE))
        == HOOKS
    )
    for name in HOOKS:
        assert len((getattr(hooks, name).__doc__ or "").split()) > 5
        assert any(test.startswith(f"test_{name}_") for test in globals()), name


def test_the_contract_imports_nothing_but_pluggy_and_the_standard_library():
    imported = set(
        re.findall(r"^\s*(?:from|import) ([\w.]+)", Path(hooks.__file__).read_text(), re.MULTILINE)
    )
    assert "pluggy" in imported
    assert {name.partition(".")[0] for name in imported - {"pluggy"}} <= sys.stdlib_module_names


@pytest.fixture
def register(monkeypatch):
    """Registers one more plugin, with the given hooks, beside ours; until
    the test ends."""
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
    register(
        "toy",
        open_clip_add_options=lambda parser: parser.add_argument("--toy", type=int, default=1),
    )
    args = parse_args("--toy 3 --batch-size 7")
    assert (args.toy, args.batch_size) == (3, 7)
    assert parse_args().toy == 1


def test_open_clip_check_options_may_refuse_the_command_line(register, parse_args):
    def check(args):
        if args.batch_size > 5:
            raise SystemExit("error: --batch-size is more than 5")

    register("toy", open_clip_check_options=check)
    with pytest.raises(SystemExit, match="--batch-size is more than 5"):
        parse_args("--batch-size 6")
    assert parse_args("--batch-size 5").batch_size == 5


def test_open_clip_model_kwargs_of_all_plugins_are_merged_and_one_that_two_set_is_an_error(
    register,
):
    register("one", open_clip_model_kwargs=lambda args: {"a": args.value})
    register("two", open_clip_model_kwargs=lambda args: {"b": 2, "c": 3})
    register("three", open_clip_model_kwargs=lambda args: None)
    assert hooks.model_kwargs(argparse.Namespace(value=1)) == {"a": 1, "b": 2, "c": 3}
    register("four", open_clip_model_kwargs=lambda args: {"b": 1})
    with pytest.raises(ValueError, match=r"two open_clip plugins set the model argument b$"):
        hooks.model_kwargs(argparse.Namespace(value=1))


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


@hookimpl
def open_clip_epoch_end(args, model, epoch):
    print(f"ended: epoch {epoch} of {type(model).__name__}", flush=True)
"""


@pytest.fixture(scope="module")
def train_in_order(shards, short_run, tmp_path_factory):
    """Trains two epochs with the plugin IN_ORDER, once with the same
    flags."""
    folder = tmp_path_factory.mktemp("in-order")
    install_plugin(folder, "in_order", IN_ORDER)

    @functools.cache
    def train(flags=""):
        data = f"--dataset-type webdataset --train-data {shards} --train-num-samples 64"
        every = f"{short_run} {data} --epochs 2 --logs none --name run{flags} {flags}"
        (run,) = completed(functools.partial(train_with, folder), every, cwd=folder)
        assert len(run.losses()) == 8
        return run

    return train


def test_open_clip_data_order_replaces_both_of_openclips_shuffles_in_every_epoch(train_in_order):
    found = re.findall(r"^shards .*|^samples$", train_in_order().output, re.MULTILINE)
    assert found == ["shards 0 1", "samples", "shards 1 0", "samples"]
    # not asked if shards are drawn with replacement
    assert not re.search(
        "^shards|^samples", train_in_order("--dataset-resampled").output, re.MULTILINE
    )


def test_open_clip_caption_tokens_makes_the_tokens_of_every_training_sample_and_gets_the_epoch(
    train_in_order,
):
    in_file = [[str(picture) for picture in range(shard, 64, 2)] for shard in range(2)]
    for epoch, expected in enumerate(([*in_file[0], *in_file[1]], [*in_file[1], *in_file[0]])):
        assert (
            re.findall(rf"^sample {epoch} (\d+)$", train_in_order().output, re.MULTILINE)
            == expected
        )


def test_open_clip_epoch_end_is_called_after_the_steps_of_every_epoch(train_in_order):
    found = re.findall(r"Train Epoch: (\d)|ended: epoch (\d) of CLIP", train_in_order().output)
    assert [step or f"{end} ended" for step, end in dict.fromkeys(found)] == [
        "0",
        "0 ended",
        "1",
        "1 ended",
    ]


def test_open_clip_select_model_class_gets_the_configuration_and_gives_the_class(
    register, tiny_model
):
    asked = []
    config = read_json(Path(tiny_model.removeprefix("local-dir:"), "open_clip_config.json"))[
        "model_cfg"
    ]

    class ToyCLIP(CLIP):
        def __init__(self, *args, toy, **kwargs):
            super().__init__(*args, **kwargs)
            self.toy = toy

    def select(model_class, model_cfg):
        asked.append((model_class, dict(model_cfg)))
        return ToyCLIP if model_class is CLIP and "toy" in model_cfg else None

    register("toy", open_clip_select_model_class=select)
    with hook_calls.plugins_model_class():
        assert type(open_clip.create_model(tiny_model, init_logit_bias=-10.0)) is CLIP
        assert asked == [(CLIP, {**config, "init_logit_bias": -10.0, "cast_dtype": None})]
        assert open_clip.create_model(tiny_model, toy="yes").toy == "yes"
        assert type(open_clip.create_model(tiny_model, superclip={})) is SuperCLIP


FREEZING = """
from open_clip.hooks import hookimpl


@hookimpl
def open_clip_model_created(args, model):
    print("created:", args.name, type(model).__name__, model.visual.proj.sum().item())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "visual.proj")
"""


@cases("more", {"CLIP": "", "SuperCLIP": "--superclip"})
def test_open_clip_model_created_changes_the_trained_model_that_has_its_weights_and_not_a_teacher(
    more, short_run, teacher, tmp_path
):
    install_plugin(tmp_path, "freezing", FREEZING)
    flags = f"--model {teacher} --distill-model {teacher} --distill-pretrained {teacher}"
    train = functools.partial(train_with, tmp_path)
    (run,) = completed(train, short_run, flags, more, cwd=tmp_path)
    start, end = open_clip.create_model(teacher).state_dict(), load(tmp_path / "logs/run")
    created = re.findall("^created: (.*)$", run.output, re.MULTILINE)
    kind = "SuperCLIP" if more else "CLIP"
    assert created == [f"run {kind} {start['visual.proj'].sum().item()}"]
    changed = [name for name in start if not torch.equal(start[name], end["state_dict"][name])]
    assert changed == ["visual.proj"]


def test_open_clip_optimizer_created_changes_the_optimizer_of_a_stock_run(short_run, tmp_path):
    plugin = "from open_clip.hooks import hookimpl\n\n\n@hookimpl\n"
    plugin += "def open_clip_optimizer_created(args, model, optimizer):\n"
    plugin += "    optimizer.param_groups[1]['lr_scale'] = 0.0\n"
    install_plugin(tmp_path, "scaling", plugin)
    completed(functools.partial(train_with, tmp_path), short_run, cwd=tmp_path)
    groups = load(tmp_path / "logs/run")["optimizer"]["param_groups"]
    assert groups[0]["lr"] > groups[1]["lr"] == 0


def test_open_clip_create_loss_of_the_later_name_replaces_and_wrappers_add_around_it(register):
    def adding(what):
        def create(args):
            return f"{what} + {(yield)}"

        return create

    call = {"args": argparse.Namespace(superclip=False), "model": None}
    create_loss = hooks.plugin_manager().hook.open_clip_create_loss
    assert create_loss(**call) is None
    register("silent", open_clip_create_loss=lambda args: None)
    register("a", open_clip_create_loss=lambda args: "a's")
    register("b", wrapper=True, open_clip_create_loss=adding("b's"))
    register("c", open_clip_create_loss=lambda args: "c's")
    register("d", wrapper=True, open_clip_create_loss=adding("d's"))
    assert create_loss(**call) == "d's + b's + c's"


def test_the_plugin_changes_nothing_where_no_command_line_was_checked():
    plugin, args = Plugin(), argparse.Namespace(train_data="pairs.csv", rank=0)
    assert plugin.open_clip_model_kwargs(args) is None
    assert plugin.open_clip_caption_tokens(args, tokenizer=None, shared_epoch=None) is None
    assert plugin.open_clip_data_order(args, shared_epoch=None) is None
    plugin.open_clip_epoch_end(args, model=None, epoch=0)
    creating = plugin.open_clip_create_loss(args, model=None)
    next(creating)
    with pytest.raises(StopIteration) as returned:
        creating.send("OpenCLIP's")
    assert returned.value.value == "OpenCLIP's"


BROKEN = {
    "one whose import fails": (
        "raise ImportError('first line\\n  second line')",
        "first line second line",
    ),
    "one that asks for an unknown hook": (
        "from openclip_superclip.hooks import hookimpl\n@hookimpl\ndef "
        "open_clip_no_such_hook(args): ...",
        "unknown hook 'open_clip_no_such_hook'",
    ),
}


@cases("source, reason", BROKEN)
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
