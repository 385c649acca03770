"""Losses, gradients and counts equal those that the authors' code computed (golden/README.md)."""

import pytest
import torch
import torch.distributed as dist
from open_clip import ClipLoss
from safetensors.torch import load_file
from support import GOLDEN
from support.training_runs import run_ranks

from openclip_superclip import SuperCLIPLoss, TokenStatistics, class_loss, plain_class_loss

BOTH = pytest.mark.parametrize("function", [class_loss, plain_class_loss])


def through_identity(function, logits, tokens, idf):
    """The losses [B] of given logits [B, V]: a head whose weight is the identity passes them on to the last bit."""
    vocab_size = logits.shape[1]
    return function(logits, torch.eye(vocab_size), torch.zeros(vocab_size), tokens, idf)


def replay(golden, function):
    """What one rank of the authors' run computed, recomputed: losses and gradients of each step, and the counts."""
    statistics = TokenStatistics(golden["logits"].shape[-1])
    losses, gradients = [], []
    for tokens, logits in zip(golden["text"], golden["logits"], strict=True):
        statistics.update(tokens)
        logits = logits.clone().requires_grad_()
        loss = through_identity(function, logits, tokens, statistics.idf()).mean()
        loss.backward()
        losses.append(loss.detach())
        gradients.append(logits.grad)
    return torch.stack(losses), torch.stack(gradients), statistics


def assert_counts_equal(statistics, golden, global_batch):
    """The authors keep the sum over steps of the batch mean of the labels; times the batch it is a count."""
    cap_fq, num_steps = golden["cap_fq"].squeeze(0), golden["num_samples"].squeeze()
    document_frequency = (cap_fq * global_batch).round()
    torch.testing.assert_close(cap_fq * global_batch, document_frequency, atol=1e-5, rtol=0)  # a count, but for float32
    torch.testing.assert_close(statistics.document_frequency, document_frequency.long(), atol=0, rtol=0)
    assert statistics.num_captions == num_steps * global_batch


@BOTH
def test_losses_gradients_and_counts_of_one_process_equal_the_authors(function):
    golden = load_file(GOLDEN / "class_loss.safetensors")
    losses, gradients, statistics = replay(golden, function)
    torch.testing.assert_close(losses, golden["class_loss"], atol=1e-6, rtol=0)
    torch.testing.assert_close(gradients, golden["logits_grad"], atol=1e-7, rtol=0)
    assert_counts_equal(statistics, golden, global_batch=6)


def test_contrastive_and_class_losses_side_by_side_equal_the_authors():
    golden = load_file(GOLDEN / "class_loss.safetensors")
    loss = SuperCLIPLoss(ClipLoss())
    statistics = TokenStatistics(golden["logits"].shape[-1])
    for step, tokens in enumerate(golden["text"]):
        statistics.update(tokens)
        losses = loss(
            image_features=golden["image_features"][step],
            text_features=golden["text_features"][step],
            logit_scale=torch.tensor(10.0),
            class_losses=through_identity(class_loss, golden["logits"][step], tokens, statistics.idf()),
            output_dict=True,
        )
        torch.testing.assert_close(losses["contrastive_loss"], golden["contrastive_loss"][step], atol=1e-6, rtol=0)
        torch.testing.assert_close(losses["class_loss"], golden["class_loss"][step], atol=1e-6, rtol=0)


def replay_as_a_rank(function):
    dist.init_process_group("gloo")
    golden = load_file(GOLDEN / f"class_loss_world2.rank{dist.get_rank()}.safetensors")
    losses, _, statistics = replay(golden, function)
    torch.testing.assert_close(losses, golden["class_loss"], atol=1e-6, rtol=0)
    assert_counts_equal(statistics, golden, global_batch=8)
    dist.destroy_process_group()
    print("equal")


@BOTH
def test_losses_and_counts_of_two_ranks_equal_the_authors(function, tmp_path):
    runs = run_ranks(replay_as_a_rank, function, world_size=2, cwd=tmp_path)
    assert [(run.returncode, run.output.strip()) for run in runs] == [(0, "equal")] * 2
