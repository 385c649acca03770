"""Runs that must be equal: flag absent and stock, two ranks and one,
accumulated and whole, resumed and unbroken."""

import open_clip
import pytest
import torch
from support import cases, parametrize, table
from support.models import SPECIAL_TOKENS, VOCAB_SIZE, rounding
from support.three_steps import SUMMED, assert_same_gradients, results_of, train_three_steps
from support.training_runs import (
    WHOLE_PICTURES,
    assert_resumes,
    assert_trains_as_stock,
    load,
    run_train,
    superclip_train,
)
from torch.testing import assert_close

# Flag absent


@parametrize(
    "flags",
    [
        "",
        "--dataset-type webdataset --train-data {shards} --train-num-samples 64",
        "--accum-freq 2 --val-data {csv}",
        "--siglip --precision amp_bf16 --grad-checkpointing --force-patch-dropout 0.5",
    ],
)
def test_without_the_flag_training_is_stock_to_the_last_digit(
    flags, shards, csv_data, short_run, tmp_path
):
    flags = f"{short_run} --logs none {flags}".format(shards=shards, csv=csv_data)
    assert assert_trains_as_stock(flags, cwd=tmp_path) == (2 if "--accum-freq" in flags else 4)


# Two ranks and one


# flags: the size of OpenCLIP's gradient on two ranks against the loss's
# own. Its ClipLoss gathers without gradients by default, so that each
# rank's is half; --local-loss without --gather-with-grad is another
# gradient altogether.


@cases("flags, gradient_scale", table("losses: gradient scales"))
def test_two_ranks_equal_one_on_the_same_global_batch(flags, gradient_scale, tiny_model, tmp_path):
    def train(rank, world_size):
        scale = gradient_scale if world_size > 1 else 1.0
        return train_three_steps(tiny_model, rank, world_size, flags, scale)

    (one,) = results_of(train, 1, tmp_path / "one")
    two = results_of(train, 2, tmp_path / "two")
    for step in range(3):
        for name, value in one["losses"][step].items():
            mean = sum(rank["losses"][step][name] for rank in two) / 2
            assert_close(mean, value, rtol=rounding(SUMMED), atol=0)
    assert one["state_dict"]["statistics.num_captions"] == 3 * 16
    for rank in two:
        assert_same_gradients(rank["gradients"], one["gradients"])
        assert_close(rank["state_dict"], one["state_dict"], rtol=1e-5, atol=1e-6)
        for name in ("statistics.num_captions", "statistics.document_frequency"):
            assert torch.equal(rank["state_dict"][name], one["state_dict"][name])


# Accumulated and whole


ACCUMULATED = [
    "",
    "--siglip",
    "--local-loss --gather-with-grad --superclip-special-tokens --superclip-head-lr 2",
]


@parametrize("flags, world_size", [*((flags, 2) for flags in ACCUMULATED), ("", 1)])
def test_accumulated_batches_train_as_one_that_is_as_large(
    flags, world_size, small_model, short_run, tmp_path
):
    # one step of plain gradient descent: Adam would hide the size of the gradients
    flags = f"{short_run} --model {small_model} --opt timm/sgd --wd 0 --lr 1 {flags}"
    flags = f"{flags} --precision fp32 --superclip {WHOLE_PICTURES} --batch-size"
    ranks = {"world_size": world_size, "cwd": tmp_path}
    parts = run_train(flags, 32 // world_size, "--accum-freq 2 --name parts", **ranks)
    whole = run_train(flags, 64 // world_size, "--name whole", **ranks)
    for name in ("Contrastive_loss", "Class_loss", "Loss"):
        assert len(whole.values(name)) == 1
        # printed with five digits
        assert parts.values(name) == pytest.approx(whole.values(name), rel=1e-4)
    parts, whole = (load(tmp_path / "logs" / name)["state_dict"] for name in ("parts", "whole"))
    for weights in (parts, whole):  # OpenCLIP adds their gradient up once a part
        weights.pop("logit_scale"), weights.pop("logit_bias", None)
    assert_close(parts, whole, rtol=1e-5, atol=5e-6)
    assert torch.equal(
        parts["statistics.document_frequency"], whole["statistics.document_frequency"]
    )


# Resumed and unbroken


def test_a_resumed_run_ends_as_an_unbroken_one_bit_for_bit(small_model, short_run, tmp_path):
    # Two ranks: their sampler's order depends on the epoch alone. OpenCLIP
    # does not restore the random state.
    flags = f"{short_run} --model {small_model} --superclip {WHOLE_PICTURES}"
    assert_resumes(superclip_train, flags, folder=tmp_path, world_size=2)
    runs = [tmp_path / name / "logs/run" for name in ("whole", "resumed")]
    whole, resumed = (load(run, epoch=2) for run in runs)
    assert whole["state_dict"]["statistics.num_captions"] == 2 * 64
    assert whole["optimizer"]["param_groups"] == resumed["optimizer"]["param_groups"]


# Counted once


@parametrize(
    "flags, world_size",
    [
        ("--accum-freq 3", 1),  # of four batches: OpenCLIP drops the last, which was counted
        ("--val-data {csv}", 2),
        ("--accum-freq 2 --grad-checkpointing --val-data {csv}", 1),
    ],
)
def test_every_trained_caption_is_counted_once(
    flags, world_size, small_model, csv_data, short_run, tmp_path
):
    flags = f"--model {small_model} --epochs 2 --save-frequency 0 --superclip {flags}"
    run_train(short_run, flags.format(csv=csv_data), world_size=world_size, cwd=tmp_path)
    counts = load(tmp_path / "logs/run", epoch=2)["state_dict"]
    captions = [row.partition("\t")[2] for row in csv_data.read_text().splitlines()[1:]]
    frequency = torch.zeros(VOCAB_SIZE, dtype=torch.int64)
    for tokens in open_clip.get_tokenizer(small_model)(captions):
        frequency[[*{*tokens.tolist()} - {*SPECIAL_TOKENS}]] += 2  # epochs
    assert counts["statistics.num_captions"] == 2 * len(captions)
    assert torch.equal(counts["statistics.document_frequency"], frequency)
