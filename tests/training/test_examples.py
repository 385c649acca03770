"""The plugins in examples/ train what their formulas say: alone, together,
and beside --superclip."""

import argparse
import functools
import math
import re
import sys

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss
from open_clip_train.data import SharedEpoch
from PIL import Image
from support import cases, parametrize, read_json, succeed, table
from support.plugins import EXAMPLES, pip_install
from support.three_steps import results_of
from support.training_runs import (
    WHOLE_PICTURES,
    assert_resumes,
    completed,
    in_one_order,
    superclip_train,
    train_with,
)
from torch.testing import assert_close

from openclip_superclip.data.data_check import check_shard

NAMES = ("open_clip_global_contrastive", "open_clip_sub_captions")
for name in NAMES:
    sys.path.append(str(EXAMPLES / name))

from open_clip_global_contrastive import GlobalContrastiveLoss  # noqa: E402
from open_clip_sub_captions import SubCaptionLoss, TokensWithSubCaptions, sub_captions  # noqa: E402


def features(num_samples, seed=0):
    """Image and text features [N, 6] that need gradients."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2, num_samples, 6, generator=generator)
    return tuple(F.normalize(one, dim=-1).requires_grad_() for one in drawn)


SCALE = 3.0


def plain_loss(image, text, scale, slots, u, gamma, eps):
    """The value, and a sum whose gradient is the loss's: of grad g / (eps +
    u). Updates `u`, a dict by slot.

    `g` is g_i and h_i of the docstring, over the samples given, in float64
    and one term at a time.
    """
    value, surrogate = 0.0, 0.0
    for i, slot in enumerate(slots):
        others, positive = [j for j in range(len(slots)) if j != i], image[i] @ text[i]
        g = [
            sum((scale * (one[i] @ other[j] - positive)).exp() for j in others) / len(others)
            for one, other in ((image, text), (text, image))
        ]
        old = u.get(slot)
        u[slot] = tuple(
            new.item() if old is None else (1 - gamma) * old[side] + gamma * new.item()
            for side, new in enumerate(g)
        )
        for side in range(2):
            value += math.log(eps + u[slot][side]) / 2 / len(slots)
            surrogate = surrogate + g[side] / (eps + u[slot][side]) / 2 / len(slots)
    return value, surrogate


@parametrize("gamma, eps", [(0.9, 1e-14), (0.3, 0.1), (1.0, 1e-3)])
def test_the_global_contrastive_loss_equals_a_slow_plain_version_over_four_steps(gamma, eps):
    loss, u = GlobalContrastiveLoss(20, gamma, eps), {}
    for step, slots in enumerate([[3, 7, 1, 0], [3, 19, 7, 2], [7, 3, 0, 1], [19, 2, 5, 6]]):
        image, text = features(4, seed=step)
        scale = torch.tensor(SCALE, requires_grad=True)
        ours = loss(image, text, scale, torch.tensor(slots), output_dict=True)["contrastive_loss"]
        ours.backward()
        exact = [one.detach().double().requires_grad_() for one in (image, text, scale)]
        value, surrogate = plain_loss(*exact, slots, u, gamma, eps)
        surrogate.backward()
        assert ours.item() == pytest.approx(value, rel=1e-5, abs=1e-6)
        for found, expected in zip((image, text, scale), exact, strict=True):
            assert_close(found.grad, expected.grad.float(), rtol=1e-4, atol=1e-6)
    estimates = loss.bits.view(torch.float32).exp()
    for slot in range(20):
        if slot in u:
            assert_close(estimates[slot], torch.tensor(u[slot]), rtol=1e-5, atol=0)
        else:
            assert estimates[slot].isnan().all()


@parametrize("local_loss, gather_with_grad", [(False, False), (False, True), (True, True)])
def test_two_ranks_have_the_gradients_and_the_estimates_of_one(
    local_loss, gather_with_grad, tmp_path
):
    def steps(rank, world_size):
        gather = {"local_loss": local_loss, "gather_with_grad": gather_with_grad}
        loss = GlobalContrastiveLoss(9, 0.5, 1e-14, rank=rank, world_size=world_size, **gather)
        for seed, slots in enumerate([[3, 7, 1, 0], [3, 8, 7, 3]]):  # 3 twice: as hashes may be
            rows = slice(rank * 4 // world_size, (rank + 1) * 4 // world_size)
            image, text = (one.detach()[rows].requires_grad_() for one in features(4, seed))
            loss(image, text, torch.tensor(SCALE), torch.tensor(slots)[rows]).backward()
        # DDP takes the mean over ranks; without gradients through the
        # exchange, ClipLoss's are 1 / world_size, too
        shrunk = world_size if gather_with_grad else 1
        return {"image": image.grad / shrunk, "text": text.grad / shrunk, "bits": loss.bits}

    (one,) = results_of(steps, 1, tmp_path / "one")
    two = results_of(steps, 2, tmp_path / "two")
    for name in ("image", "text"):
        assert_close(torch.cat([rank[name] for rank in two]), one[name], rtol=1e-5, atol=1e-7)
    for rank in two:
        assert_close(
            rank["bits"].view(torch.float32), one["bits"].view(torch.float32), equal_nan=True
        )
    assert torch.equal(two[0]["bits"], two[1]["bits"])


# Sub-captions


@cases("caption, parts", table("shards_and_tables: sub-captions"))
def test_sub_captions_are_sentences_and_clauses(caption, parts):
    assert sub_captions(caption) == parts


@parametrize("contrastive", [ClipLoss, SigLipLoss])
def test_the_sub_caption_loss_is_the_mean_contrastive_loss_over_sub_captions(contrastive):
    image, text = features(5)
    subs = torch.stack([features(5, seed)[1] for seed in (1, 2, 3)], dim=1)  # [B, K, D]
    outputs = {"image_features": image, "logit_scale": torch.tensor(SCALE)}
    if contrastive is SigLipLoss:
        outputs["logit_bias"] = torch.tensor(-2.0)
    losses = SubCaptionLoss(contrastive(), contrastive(), 0.7)(
        **outputs, text_features=text, sub_text_features=subs, output_dict=True
    )
    expected = [contrastive()(text_features=subs[:, k], **outputs) for k in range(3)]
    assert losses.keys() == {"contrastive_loss", "sub_caption_loss"}
    assert_close(losses["sub_caption_loss"], 0.7 * sum(expected) / 3)
    assert losses["contrastive_loss"] == contrastive()(text_features=text, **outputs)


# Training


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with these plugins, and with that of adapters."""
    folder = tmp_path_factory.mktemp("site-packages")
    return pip_install(folder, *NAMES, "open_clip_lora")


PLUGINS = table("training: example plugins")  # at their size, no two of 64 hashes are equal
ALL = PLUGINS["all"][0]


@pytest.fixture(scope="module")
def train(installed, shards, short_run, tmp_path_factory):
    """Trains two epochs of 4 steps in one order of the samples, once with
    the same flags."""

    @functools.cache
    def train(flags="", plugins=True):
        function = functools.partial(train_with, installed) if plugins else superclip_train
        data = f"--dataset-type webdataset --train-data {shards} --train-num-samples 64 --epochs 2"
        every = (short_run, data, WHOLE_PICTURES, flags)
        (run,) = completed(in_one_order(function), *every, cwd=tmp_path_factory.mktemp("run"))
        assert len(run.losses()) == 8
        return run

    return train


@cases("flags, losses", PLUGINS)
def test_each_plugin_trains_alone_and_with_the_others(flags, losses, train):
    run, expected = train(flags), {"Contrastive_loss", *losses.split()}
    assert set(re.findall(r"(\w*loss): ", run.losses()[0])) == expected
    for step, total in enumerate(run.values("Loss")):
        assert total == pytest.approx(sum(run.values(loss)[step] for loss in expected), rel=1e-4)
    if not flags:  # installed but off, they change nothing
        assert run.losses() == train(plugins=False).losses()


def test_accumulated_steps_are_those_of_the_large_batch(train):
    large, accumulated = train(ALL), train(f"{ALL} --batch-size 8 --accum-freq 2")
    for name in ("Contrastive_loss", "Sub_caption_loss", "Class_loss"):
        ours, theirs = accumulated.values(name), large.values(name)
        assert ours[:2] == pytest.approx(theirs[:2], rel=2e-4)
        # AdamW amplifies rounding from step to step
        assert ours == pytest.approx(theirs, rel=2e-4, abs=1e-3)


def test_a_resumed_run_ends_where_one_that_never_stopped_ends(
    installed, shards, short_run, tmp_path
):
    data = (
        f"--dataset-type webdataset --train-data {shards} --train-num-samples 64 "
        "--superclip-slices 1"
    )
    train = functools.partial(train_with, installed)
    assert_resumes(train, short_run, data, ALL, WHOLE_PICTURES, folder=tmp_path)


def test_sub_captions_differ_from_epoch_to_epoch_and_not_from_run_to_run():
    epoch = SharedEpoch()
    args = argparse.Namespace(
        sub_captions=2, sub_captions_key="long.txt", csv_caption_key="title", seed=0
    )
    tokens = TokensWithSubCaptions(
        None, lambda texts: torch.tensor([[len(text)] for text in texts]), args, epoch
    )
    sample = {"__key__": "0", "txt": "four", "long.txt": "a. aa. aaa. aaaa. aaaaa"}
    drawn = []
    for value in [*range(8), 0]:
        epoch.set_value(value)
        drawn.append(tuple(tokens(sample).tolist()))
        assert drawn[-1][0] == 4
        assert drawn[-1][1] != drawn[-1][2]
    assert len(set(drawn)) > 4
    assert drawn[0] == drawn[-1]
    args.sub_captions_key = "long"
    assert tokens({"title": "four", "long": math.nan}).tolist() == [4, 4, 4]
    with pytest.raises(ValueError, match="no column"):
        tokens({"title": ""})


# Scripts


def test_the_shards_of_a_table_hold_its_pairs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = ["filepath,title", "missing.png,a cat", "text.png,a dog"]
    (tmp_path / "text.png").write_text("no image")
    for number in range(96):
        Image.effect_noise((32, 32), 9 + number).convert("RGB").save(f"{number}.png")
        rows += [f"{number}.png,a picture of noise number {number}"] * 2
    rows.append("0.png,")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    script = EXAMPLES / "table_to_shards.py"
    succeed([sys.executable, script, "pairs.csv", "out", "--val-fraction", "0.2"])
    pairs = {}
    for split in ("train", "val"):
        sizes = read_json(tmp_path / f"out/{split}/sizes.json")
        shards = sorted((tmp_path / "out" / split).glob("*.tar"))
        samples = [check_shard(str(shard)).num_samples for shard in shards]
        assert sizes == {shard.name: size for shard, size in zip(shards, samples, strict=True)}
        pairs[split] = sum(samples)
    assert pairs["train"] + pairs["val"] == 2 * 96
    assert pairs["val"] % 2 == 0  # an image with two captions is on one side
    assert 20 < pairs["val"] < 60
