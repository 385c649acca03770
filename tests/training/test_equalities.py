"""Runs that must be equal: flag absent and stock, two ranks and one, accumulated and whole,
resumed and unbroken."""

import csv
from pathlib import Path

import open_clip
import pytest
import torch
from support.models import SPECIAL_TOKENS, VOCAB_SIZE
from support.three_steps import assert_same_gradients, batch, results_of, train_three_steps
from support.training_runs import (
    WHOLE_PICTURES,
    assert_resumes,
    assert_trains_as_stock,
    completed,
    load,
    superclip_train,
)

import openclip_superclip as superclip
from openclip_superclip.checkpoints.epoch_words import find_course

# Flag absent


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--dataset-type webdataset --train-data {shards} --train-num-samples 64",
        "--accum-freq 2 --val-data {csv}",
        "--siglip --precision amp_bf16 --grad-checkpointing --force-patch-dropout 0.5",
    ],
)
def test_without_the_flag_training_is_stock_to_the_last_digit(
    flags, shards, csv_data, train_flags, tmp_path
):
    argv = [*train_flags, "--logs", "none", *flags.format(shards=shards, csv=csv_data).split()]
    assert assert_trains_as_stock(*argv, cwd=tmp_path) == (2 if "--accum-freq" in flags else 4)


# Two ranks and one


# flags: the size of OpenCLIP's gradient on two ranks against the loss's own. Its ClipLoss gathers
# without gradients by default, so that each rank's is half; --local-loss without --gather-with-grad
# is another gradient altogether.
GRADIENT_SCALES = [
    ({}, 0.5),
    ({"gather_with_grad": True}, 1.0),
    ({"local_loss": True, "gather_with_grad": True}, 1.0),
    *(
        ({"siglip": True, "loss_dist_impl": impl}, 1.0)
        for impl in ("bidir", "shift", "reduce", "gather")
    ),
]


@pytest.mark.parametrize(("flags", "gradient_scale"), GRADIENT_SCALES, ids=str)
def test_two_ranks_equal_one_on_the_same_global_batch(flags, gradient_scale, tiny_model, tmp_path):
    one = results_of(
        lambda *ranks: train_three_steps(tiny_model, *ranks, flags, 1.0), 1, tmp_path / "one"
    )[0]
    two = results_of(
        lambda *ranks: train_three_steps(tiny_model, *ranks, flags, gradient_scale),
        2,
        tmp_path / "two",
    )
    for step in range(3):
        for name, value in one["losses"][step].items():
            mean = sum(rank["losses"][step][name] for rank in two) / 2
            torch.testing.assert_close(mean, value, rtol=2e-6, atol=0)
    assert one["state_dict"]["statistics.num_captions"] == 3 * 16
    for rank in two:
        assert_same_gradients(rank["gradients"], one["gradients"])
        torch.testing.assert_close(rank["state_dict"], one["state_dict"], rtol=1e-5, atol=1e-6)
        for name in ("statistics.num_captions", "statistics.document_frequency"):
            assert torch.equal(rank["state_dict"][name], one["state_dict"][name])
        torch.testing.assert_close(
            rank["words"], one["words"], rtol=1e-4, atol=1e-7, equal_nan=True
        )
    assert one["words"]["num_captions"] == 3 * 16


def test_the_mean_over_ranks_is_right_when_their_batches_differ(tiny_model, tmp_path):
    # the class loss alone, of 16 captions that two ranks share as 11 and 5
    def step(rank, world_size):
        torch.manual_seed(0)
        model, _, _ = superclip.create_model_and_transforms(tiny_model)
        module = model
        if world_size > 1:
            model = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        images, tokens = (
            tensor.split([16] if world_size == 1 else [11, 5])[rank]
            for tensor in batch(tiny_model, 16)
        )
        loss = model(images, tokens)["class_losses"].mean()
        loss.backward()
        gradients = {
            name: p.grad
            for name, p in module.named_parameters()
            if p.grad is not None and p.grad.any()
        }
        return {"loss": loss.detach(), "gradients": gradients}

    one = results_of(step, 1, tmp_path / "one")[0]
    two = results_of(step, 2, tmp_path / "two")
    torch.testing.assert_close(
        (two[0]["loss"] + two[1]["loss"]) / 2, one["loss"], rtol=1e-6, atol=0
    )
    assert {"class_head.weight", "visual.conv1.weight"} <= one["gradients"].keys()
    for rank in two:
        assert_same_gradients(rank["gradients"], one["gradients"])


# Accumulated and whole


ACCUMULATED = [
    "",
    "--siglip",
    "--local-loss --gather-with-grad --superclip-special-tokens --superclip-weight 2",
]


def accumulated_and_whole(argv, batch_size: int, world_size: int, folder: Path) -> list:
    """The runs of rank 0 with half the batch size and --accum-freq 2, and without."""
    parts = ["--name", "parts", "--batch-size", batch_size // 2 // world_size, "--accum-freq", "2"]
    whole = ["--name", "whole", "--batch-size", batch_size // world_size]
    argv = [*argv, "--precision", "fp32", *WHOLE_PICTURES, "--superclip"]
    return [
        completed(superclip_train, *argv, *more, world_size=world_size, cwd=folder)[0]
        for more in (parts, whole)
    ]


@pytest.mark.parametrize(("flags", "world_size"), [*((flags, 2) for flags in ACCUMULATED), ("", 1)])
def test_accumulated_batches_train_as_one_that_is_as_large(
    flags, world_size, small_model, train_flags, tmp_path
):
    argv = [*train_flags, "--model", small_model, "--eps", "1e-5", *flags.split()]
    parts, whole = accumulated_and_whole(argv, 16, world_size, tmp_path)
    words = [find_course(tmp_path / "logs" / name).read(1)._asdict() for name in ("parts", "whole")]
    torch.testing.assert_close(*words, rtol=1e-3, atol=1e-6, equal_nan=True)
    for name in ("Contrastive_loss", "Class_loss", "Loss"):
        assert len(whole.values(name)) == 4
        # printed with five digits
        assert parts.values(name) == pytest.approx(whole.values(name), rel=1e-4)
    parts, whole = (load(tmp_path / "logs" / name)["state_dict"] for name in ("parts", "whole"))
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-5)  # of steps of 1e-3
    assert torch.equal(
        parts["statistics.document_frequency"], whole["statistics.document_frequency"]
    )


@pytest.mark.parametrize("flags", ACCUMULATED[:2])
def test_accumulated_gradients_are_as_large_as_one_batchs(
    flags, small_model, train_flags, tmp_path
):
    argv = [
        *train_flags,
        "--model",
        small_model,
        "--opt",
        "timm/sgd",
        "--wd",
        "0",
        "--lr",
        "1",
        *flags.split(),
    ]
    accumulated_and_whole(argv, 64, 2, tmp_path)  # one step of plain gradient descent
    parts, whole = (load(tmp_path / "logs" / name)["state_dict"] for name in ("parts", "whole"))
    for weights in (parts, whole):  # OpenCLIP adds their gradient up once a part
        weights.pop("logit_scale"), weights.pop("logit_bias", None)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=5e-6)


# Resumed and unbroken


def test_a_resumed_run_ends_as_an_unbroken_one_bit_for_bit(small_model, train_flags, tmp_path):
    # Two ranks: their sampler's order depends on the epoch alone. OpenCLIP does not restore the
    # random state.
    argv = [*train_flags, "--model", small_model, "--superclip", *WHOLE_PICTURES]
    assert_resumes(superclip_train, *argv, folder=tmp_path, world_size=2)
    runs = [tmp_path / name / "logs/run" for name in ("whole", "resumed")]
    whole, resumed = (load(run, epoch=2) for run in runs)
    assert whole["state_dict"]["statistics.num_captions"] == 2 * 64
    assert whole["optimizer"]["param_groups"] == resumed["optimizer"]["param_groups"]
    words = [find_course(run).read(2)._asdict() for run in runs]
    torch.testing.assert_close(*words, rtol=0, atol=0, equal_nan=True)


# Counted once


@pytest.mark.parametrize(
    ("flags", "world_size"),
    [
        ("--accum-freq 3", 1),  # of four batches: OpenCLIP drops the last, which was counted
        ("--val-data {csv}", 2),
        ("--accum-freq 2 --grad-checkpointing --val-data {csv}", 1),
    ],
)
def test_every_trained_caption_is_counted_once(
    flags, world_size, small_model, csv_data, train_flags, tmp_path
):
    argv = [
        *train_flags,
        "--model",
        small_model,
        "--batch-size",
        "16",
        "--epochs",
        "2",
        "--save-frequency",
        "0",
    ]
    argv += ["--superclip", *flags.format(csv=csv_data).split()]
    completed(superclip_train, *argv, world_size=world_size, cwd=tmp_path)
    counts = load(tmp_path / "logs/run", epoch=2)["state_dict"]
    captions = [
        row["title"] for row in csv.DictReader(csv_data.read_text().splitlines(), delimiter="\t")
    ]
    frequency = torch.zeros(VOCAB_SIZE, dtype=torch.int64)
    for tokens in open_clip.get_tokenizer(small_model)(captions):
        # epochs
        frequency[[token for token in set(tokens.tolist()) if token not in SPECIAL_TOKENS]] += 2
    assert counts["statistics.num_captions"] == 2 * len(captions)
    assert torch.equal(counts["statistics.document_frequency"], frequency)
    course = find_course(tmp_path / "logs/run")
    words = [course.read(epoch) for epoch in (1, 2)]
    trained = 48 if "--accum-freq 3" in flags else 64
    assert [epoch.num_captions for epoch in words] == [trained, trained]
    if trained == 64:
        assert torch.equal(words[0].captions + words[1].captions, frequency)


# Sharded and whole


@pytest.mark.parametrize("shard_all", [False, True], ids=["visual", "visual and the rest"])
@pytest.mark.parametrize("head_input", ["patches", "both"])
def test_a_sharded_vision_tower_trains_as_a_whole_one_and_its_hooks_fire(
    head_input, shard_all, tiny_model, tmp_path
):
    def step(rank, world_size):
        torch.manual_seed(0)
        model, _, _ = superclip.create_model_and_transforms(
            tiny_model, idf="off", head_input=head_input
        )
        called = []
        model.visual.register_forward_hook(
            lambda module, args, output: called.append(tuple(output.shape))
        )
        if world_size > 1:
            from torch.distributed.fsdp import fully_shard

            # as OpenCLIP's main branch
            model.logit_scale = torch.nn.Parameter(model.logit_scale.detach().reshape(1))
            fully_shard(model.visual)
            if shard_all:
                fully_shard(model)
        loss = superclip.SuperCLIPLoss(open_clip.ClipLoss())
        # all of it on each rank: the mean over the ranks is one rank's
        images, tokens = batch(tiny_model, 16)
        losses = loss(**model(images, tokens), output_dict=True)
        sum(losses.values()).sum().backward()
        gradients = {
            name: getattr(p.grad, "full_tensor", lambda p=p: p.grad)()
            for name, p in model.named_parameters()
            if name.startswith("visual.")
        }
        losses = [value.detach().view(()) for value in losses.values()]
        return {"losses": losses, "gradients": gradients, "called": called}

    (one,) = results_of(step, 1, tmp_path / "one")
    for rank in results_of(step, 2, tmp_path / "two"):
        torch.testing.assert_close(rank["losses"], one["losses"], rtol=1e-6, atol=0)
        assert_same_gradients(rank["gradients"], one["gradients"])
        assert rank["called"] == one["called"] == [(16, 32)]
