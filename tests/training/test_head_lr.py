"""--superclip-head-lr: the class head learns at a rate of its own, on the
schedule of the towers."""

import pytest
from support import cases, parametrize
from support.models import assert_equal
from support.training_runs import (
    WHOLE_PICTURES,
    assert_resumes,
    error_of,
    load,
    run_train,
    superclip_train,
)
from torch.testing import assert_close


@pytest.fixture(scope="module")
def small_run(short_run, small_model):
    return f"{short_run} --model {small_model} --superclip {WHOLE_PICTURES} --lr 1e-3"


HEAD_LR = "--superclip-head-lr 1e-2"


@parametrize("opt", ["adamw", "timm/adamw", "timm/lookahead_sgd"])
def test_the_heads_groups_come_last_with_the_rate_and_the_decay_of_their_own(
    opt, small_run, tmp_path
):
    betas = "--beta1 0.9 --beta2 0.98 --eps 1e-6" if opt == "timm/adamw" else ""
    run = run_train(
        f"{small_run} {HEAD_LR} --opt {opt} {betas} --wd 0.1 --lr-scheduler const", cwd=tmp_path
    )
    assert "peak learning rate 0.001, of the class head 0.01" in run.output
    groups = load(tmp_path / "logs/run")["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == [1e-3, 1e-3, 1e-2, 1e-2]
    assert [group["weight_decay"] for group in groups] == [0, 0.1, 0, 0.1]
    assert [len(group["params"]) for group in groups[2:]] == [3, 1]
    assert all(group["lr_scale"] == 10 for group in groups[2:])


@parametrize(
    "more",
    [
        "",
        "--precision amp_bf16",
        "--grad-clip-norm 0.1",
        "--accum-freq 2 --batch-size 32",
        "--lock-image",
        "--superclip-head-warmup 1000",
    ],
)
def test_one_step_moves_the_head_by_its_rate_and_the_towers_as_before(more, small_run, tmp_path):
    flags = f"{small_run} --opt timm/sgd --wd 0 --batch-size 64 --skip-scheduler {more}"
    run_train(flags, "--name one-rate --lr 1", cwd=tmp_path)
    run_train(flags, "--name start --lr 0", cwd=tmp_path)
    run_train(flags, "--name two-rates --lr 1 --superclip-head-lr 10", cwd=tmp_path)
    one, start, two = (
        load(tmp_path / "logs" / name)["state_dict"] for name in ("one-rate", "start", "two-rates")
    )
    head = {name for name in start if name.startswith("class_head.")}
    assert_equal(*({k: v for k, v in each.items() if k not in head} for each in (one, two)))
    for name in head:
        assert_close(two[name] - start[name], 10 * (one[name] - start[name]), rtol=1e-5, atol=3e-6)


@parametrize("flags", ["", "--warmup 3", "--lr-scheduler const-cooldown --epochs-cooldown 1"])
def test_the_rate_of_the_towers_trains_as_without_the_flag(flags, small_run, tmp_path):
    run_train(f"{small_run} {flags} --name one", cwd=tmp_path)
    run_train(f"{small_run} {flags} --superclip-head-lr 1e-3 --name two", cwd=tmp_path)
    one, two = (load(tmp_path / f"logs/{name}") for name in ("one", "two"))
    assert_equal(one["state_dict"], two["state_dict"])
    groups = two["optimizer"]["param_groups"]
    assert {group["lr"] for group in groups} == {one["optimizer"]["param_groups"][0]["lr"]}


def test_two_ranks_train_as_one(small_run, tmp_path):
    flags = f"{small_run} --opt timm/sgd --wd 0 --lr 1 --superclip-head-lr 3"
    flags = f"{flags} --local-loss --gather-with-grad --batch-size"
    run_train(flags, "32 --name two", world_size=2, cwd=tmp_path)
    run_train(flags, "64 --name one", cwd=tmp_path)
    two, one = (load(tmp_path / "logs" / name)["state_dict"] for name in ("two", "one"))
    assert_close(two, one, rtol=1e-5, atol=5e-6)


# Resumed


def test_a_resumed_run_ends_as_an_unbroken_one_bit_for_bit(small_run, tmp_path):
    assert_resumes(superclip_train, small_run, HEAD_LR, folder=tmp_path, world_size=2)


RESUMED = {
    "without the flag": (HEAD_LR, "", "is 10 times --lr: keep this ratio"),
    "with the flag": ("", HEAD_LR, "without --superclip-head-lr: leave it out"),
    "another ratio": (HEAD_LR, f"{HEAD_LR} --lr 1e-4", "is 10 times --lr: keep this ratio"),
}


@cases("before, after, reason", RESUMED)
def test_a_run_that_was_started_at_another_ratio_is_not_resumed(
    before, after, reason, small_run, tmp_path
):
    run_train(small_run, before, cwd=tmp_path)
    flags = f"{small_run} --epochs 2 --resume latest"
    assert reason in error_of(superclip_train, flags, after, cwd=tmp_path)
    run_train(flags, before.replace("1e-2", "1e-3"), before and "--lr 1e-4", cwd=tmp_path)
