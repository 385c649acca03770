"""The adapter for OpenCLIP 4 does what its hooks promise, on small doubles of its tasks, trainer
and data module."""

import argparse
import types

import pluggy
import pytest
import torch
from torch import nn

from openclip_superclip import InputError, hooks
from openclip_superclip.checkpoints.resume import check_kind
from openclip_superclip.openclip import hook_calls, openclip_4
from openclip_superclip.openclip.checks import check_command_line, check_data, data_problems
from openclip_superclip.openclip.parsed_options import Training
from openclip_superclip.plugin import Plugin


@pytest.fixture
def answer(monkeypatch):
    """Makes the only plugin answer a hook, and returns what it was asked with."""

    def answer(value, name="open_clip_create_loss"):
        asked = []

        def create_loss(args, model):
            asked.append({"args": args, "model": model})
            return value

        def epoch_end(args, model, epoch):
            asked.append({"args": args, "model": model, "epoch": epoch})

        manager = pluggy.PluginManager("open_clip")
        manager.add_hookspecs(hooks)
        implementation = create_loss if name == "open_clip_create_loss" else epoch_end
        manager.register(types.SimpleNamespace(**{name: hooks.hookimpl(implementation)}))
        monkeypatch.setattr(hooks, "plugin_manager", lambda: manager)
        return asked

    return answer


class Task(nn.Module):
    """A task whose loss is a module, as OpenCLIP's."""

    def __init__(self):
        super().__init__()
        self.loss = nn.Identity()


class PickyTask(Task):
    """A task that picks its loss's inputs by name, as CoCa's."""

    def _build_loss_inputs(self, model_out, batch):
        return {"logits": model_out["logits"][:, :-1], "labels": batch["text"][:, 1:]}


def test_a_task_trains_with_the_plugins_loss_which_need_not_be_a_module_or_keeps_openclips(answer):
    args, loss = argparse.Namespace(name="run"), lambda **outputs: outputs
    asked = answer(loss)
    task = openclip_4.with_plugins_task(lambda args, model, dist_model=None: Task())(
        args, "the model", dist_model=None
    )
    assert task.loss is loss
    assert asked == [{"args": args, "model": "the model"}]
    answer(None)
    create_task = openclip_4.with_plugins_task(lambda args, model: PickyTask())
    task = create_task(argparse.Namespace(), "the model")
    assert type(task.loss) is nn.Identity
    assert "_build_loss_inputs" not in vars(task)


def test_a_loss_gets_what_a_picky_task_leaves_out_but_for_the_bias_that_no_caption_loss_takes(
    answer,
):
    answer(lambda **outputs: outputs)
    create_task = openclip_4.with_plugins_task(lambda args, model: PickyTask())
    task = create_task(argparse.Namespace(), "the model")
    outputs = {
        "logits": torch.zeros(2, 4, 3),
        "class_losses": torch.ones(2),
        "logit_bias": torch.zeros(()),
    }
    inputs = task._build_loss_inputs(outputs, {"text": torch.arange(8).view(2, 4)})
    assert inputs.keys() == {"logits", "labels", "class_losses"}
    assert inputs["class_losses"] is outputs["class_losses"]
    assert inputs["logits"].shape == (2, 3, 3)


def test_a_task_that_takes_a_loss_is_made_with_the_plugins(answer):
    def create_task(args, model, *, loss=None):
        task = Task()
        task.made_with = loss
        return task

    loss = nn.Identity()
    answer(loss)
    assert openclip_4.with_plugins_task(create_task)("args", model="the model").made_with is loss


def test_a_wrapper_gets_the_tasks_own_loss(answer, monkeypatch):
    answer(None)
    wrapped = []

    def create_loss(args):
        wrapped.append((yield))
        return wrapped[0]

    wrapper = types.SimpleNamespace(open_clip_create_loss=hooks.hookimpl(create_loss, wrapper=True))
    hooks.plugin_manager().register(wrapper)
    task = openclip_4.with_plugins_task(lambda model, args: Task())("the model", "args")
    assert wrapped == [task.loss]
    assert type(task.loss) is nn.Identity


def test_plugins_are_called_after_the_steps_of_an_epoch_with_the_module_that_trains(
    answer, monkeypatch
):
    asked, order = answer(None, "open_clip_epoch_end"), []

    def train_one_epoch(state, data, args, tb_writer=None):
        order.append(len(asked))

    state, args = (
        types.SimpleNamespace(task=types.SimpleNamespace(trainable_module="model"), epoch=3),
        object(),
    )
    monkeypatch.setattr(hook_calls, "current", lambda: openclip_4)
    hook_calls.with_epoch_end(train_one_epoch)(state, {}, args, tb_writer=None)
    assert order == [0]
    assert asked == [{"args": args, "model": "model", "epoch": 3}]


@pytest.fixture
def webdataset(monkeypatch):
    """Returns the stage that stands in for webdataset, given flags, and what the plugin's
    function is called with."""
    import open_clip_train.data as data

    def extract(keys, sample_probs=None):
        return lambda meta: next((meta[key] for key in keys.split(";") if meta.get(key)), "")

    monkeypatch.setattr(data, "_split_wds_keys", lambda keys: keys.split(";"), raising=False)
    monkeypatch.setattr(data, "JsonCaptionExtractor", extract, raising=False)
    monkeypatch.setattr(
        data,
        "FilterNonEmptyText",
        lambda key: lambda sample: bool(sample[key].strip()),
        raising=False,
    )

    def webdataset(tokens, text_key="txt", json_text_key=None):
        args = argparse.Namespace(
            text_key=text_key, json_text_key=json_text_key, json_text_key_probs=None
        )
        return openclip_4.WebDataset(args, None, tokens)

    return webdataset


SAMPLES = [
    {"jpg": b"1", "txt": b"a dog", "alt": b"an alt", "json": {"cap": "one"}},
    {"jpg": b"2", "txt": b" ", "alt": b"b"},
]
CAPTIONS = {  # flags of OpenCLIP: the captions that the plugins get
    "txt": ({}, ["a dog"]),
    "alternatives": ({"text_key": "none;alt"}, ["an alt", "b"]),
    "json": ({"json_text_key": "none;cap"}, ["one"]),
}


@pytest.mark.parametrize(("flags", "captions"), CAPTIONS.values(), ids=CAPTIONS)
def test_plugins_get_the_caption_that_openclips_flags_name_and_no_empty_one(
    flags, captions, webdataset
):
    asked = []

    def tokens(sample):
        asked.append(sample["txt"])
        return torch.tensor([len(asked)])

    stage = webdataset(tokens, **flags).rename(
        image="jpg", text="json" if "json_text_key" in flags else "txt", keep=False
    )
    samples = [{**sample, "json": sample.get("json", {})} for sample in SAMPLES]
    renamed = list(stage(iter(samples)))
    assert asked == captions
    assert [sample["text"].item() for sample in renamed] == [*range(1, len(captions) + 1)]
    assert renamed[0]["image"] == b"1"


def test_a_sample_without_tokens_is_left_out_and_the_pass_is_ended_with_the_number_kept(webdataset):
    class Tokens:
        def __call__(self, sample):
            return None

        def end_pass(self, num_kept):
            self.num_kept = num_kept

    tokens = Tokens()
    assert (
        list(webdataset(tokens).rename(image="jpg", text="txt", keep=False)(iter(SAMPLES[:1])))
        == []
    )
    assert tokens.num_kept == 0


# options of OpenCLIP 4, --superclip-captions, --superclip-slices: what the one line says
REFUSED = {
    "audio": ({"dataset_type": "webdataset-audio"}, "short", None, "has no images"),
    "two draws": (
        {"json_text_key_probs": [1.0]},
        "mixed:0.5",
        None,
        "both sample captions: use only one",
    ),
    "sharded": (
        {"fsdp_checkpoint": "sharded"},
        "short",
        None,
        "--fsdp-checkpoint sharded does not work with",
    ),
    "NaFlex in slices": (
        {"use_naflex": True},
        None,
        2,
        "--superclip-slices does not work with --use-naflex",
    ),
}


@pytest.mark.parametrize(("options", "captions", "slices", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_openclip_4_cannot_train_with_our_flags_is_refused(
    options, captions, slices, reason, parse_args
):
    args = parse_args(["--dataset-type", "synthetic"])
    vars(args).update(
        options, only_options=True, dataset_type=options.get("dataset_type", "webdataset")
    )
    if captions is not None:
        vars(args).update(superclip=True, superclip_captions=captions)
        vars(args).update({} if captions == "short" else {"superclip_long_caption": "long.txt"})
    if slices is not None:
        args.superclip_slices = slices
    with pytest.raises(InputError, match=f"^[^\n]*{reason}[^\n]*$"):
        check_command_line(Training(args))


@pytest.mark.parametrize(
    "options", [{"dataset_type": "synthetic-audio"}, {"audio_zeroshot_dataset": "esc50"}]
)
def test_audio_is_data_too(options, parse_args):
    args = argparse.Namespace(**vars(parse_args([])) | options)
    assert list(data_problems(args)) == []


def test_naflex_may_set_the_size_of_an_epoch_in_tokens(parse_args):
    args = parse_args(["--dataset-type", "synthetic"])
    given = {
        "dataset_type": "webdataset",
        "train_data": "0.tar",
        "text_key": "not;checked",
        "accum_freq": 8,
    }
    vars(args).update(
        given, use_naflex=True, naflex_num_train_image_tokens=None, superclip=True, workers=0
    )
    with pytest.raises(InputError, match="--train-num-samples is not given"):
        check_data(Training(args))
    args.naflex_num_train_image_tokens = 1000
    check_data(Training(args))


MUON = {  # what is given: what Muon leaves to its fallback
    "nothing": ({}, ["class_head.*"]),
    "a list": ({"opt_fallback_list": ["*.proj"]}, ["*.proj", "class_head.*"]),
    "a list of its arguments": (
        {"opt_kwargs": {"fallback_list": ["*.proj"]}},
        ["*.proj", "class_head.*"],
    ),
    "another optimizer": ({"opt": "timm/lamb"}, None),
}


@pytest.mark.parametrize(("options", "expected"), MUON.values(), ids=MUON)
def test_muon_leaves_the_class_head_to_its_fallback(options, expected, parse_args, tmp_path):
    args = parse_args(
        ["--dataset-type", "synthetic", "--train-num-samples", "1", "--logs", str(tmp_path)]
    )
    given = {"opt": "timm/nadamuon", "opt_fallback_list": None, "opt_kwargs": {}, "superclip": True}
    vars(args).update(given | options)
    Plugin().open_clip_check_options(args)
    assert args.opt_fallback_list == expected


# of a saved run: its file's content, the ranks and the OpenCLIP that resume it, and what the one
# line says
KINDS = {
    "OpenCLIP 3": (
        {},
        None,
        True,
        "of a run on OpenCLIP 3, with other parameter groups of the optimizer",
    ),
    "OpenCLIP 4": (
        {"global_step": 8},
        None,
        False,
        "of a run on OpenCLIP 4, with other parameter groups",
    ),
    "torchrun, by Horovod": (
        {},
        False,
        False,
        "of a run of torchrun's ranks, with other names of the weights",
    ),
}


@pytest.mark.parametrize(("content", "with_ddp", "has_tasks", "reason"), KINDS.values(), ids=KINDS)
def test_a_checkpoint_of_another_kind_of_run_is_not_resumed(
    content, with_ddp, has_tasks, reason, tmp_path
):
    file = tmp_path / "epoch_1.pt"
    torch.save({"epoch": 1, "state_dict": {"module.logit_scale": torch.zeros(())}, **content}, file)
    other_ddp = None if with_ddp is None else True
    options = {"model": "ViT-B-32", "with_head": False}
    check_kind(str(file), with_ddp=other_ddp, has_tasks=bool(content), **options)
    with pytest.raises(
        InputError, match=f"^--resume: [^\n]*epoch_1.pt is {reason}[^\n]*--pretrained [^\n]*$"
    ):
        check_kind(str(file), with_ddp=with_ddp, has_tasks=has_tasks, **options)
