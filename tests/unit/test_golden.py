"""Losses, gradients, counts and features equal those that the authors' code computed (golden/README.md)."""

import json

import pytest
import torch
import torch.distributed as dist
from open_clip import ClipLoss
from safetensors.torch import load_file
from support import GOLDEN
from support.training_runs import run_ranks

from openclip_superclip import (
    SuperCLIP,
    SuperCLIPLoss,
    SuperCustomTextCLIP,
    TokenStatistics,
    class_loss,
    plain_class_loss,
)
from openclip_superclip.method.patch_tokens import encode_image

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


def reference_model(model_class):
    """The authors' checkpoint in a model of ours, and what the authors' model computed."""
    config = json.loads((GOLDEN / "reference_tiny.json").read_text())
    del config["clstext_cfg"]
    model = model_class(**config, superclip={"ignored_tokens": ()}).eval()
    theirs = torch.load(GOLDEN / "reference_tiny.pt", weights_only=True)["state_dict"]
    theirs = {key.removeprefix("module."): value for key, value in theirs.items()}
    del theirs["cap_fq"], theirs["num_samples"]
    new_prefixes = {"text_decoder.ln_mlp.": "class_head.ln.", "text_decoder.text_projection.": "class_head."}
    if model_class is SuperCLIP:
        new_prefixes["text."] = ""
    for old, new in new_prefixes.items():
        theirs = {new + key.removeprefix(old) if key.startswith(old) else key: v for key, v in theirs.items()}
    fresh_counts = {key: v for key, v in model.state_dict().items() if key.startswith("statistics.")}
    model.load_state_dict(theirs | fresh_counts, strict=True)
    return model, load_file(GOLDEN / "reference_tiny.io.safetensors")


@pytest.mark.parametrize("model_class", [SuperCLIP, SuperCustomTextCLIP])
@torch.no_grad()
def test_the_authors_checkpoint_computes_their_features_class_logits_and_losses(model_class):
    model, golden = reference_model(model_class)
    outputs = model(golden["image"], golden["text"])
    assert outputs.keys() == {"image_features", "text_features", "logit_scale"}
    _, patch_mean = encode_image(model.visual, model.patch_tokens, golden["image"])
    trained = model.train()(golden["image"], golden["text"])
    losses = through_identity(plain_class_loss, golden["class_logits"], golden["text"], model.statistics.idf())
    for found, expected in (
        (outputs["image_features"], golden["image_features"]), (outputs["text_features"], golden["text_features"]),
        (outputs["logit_scale"].view(1), golden["logit_scale"]),
        (model.class_head.logits(patch_mean), golden["class_logits"]),
        (trained["image_features"], golden["image_features"]), (trained["text_features"], golden["text_features"]),
        (trained["class_losses"], losses),
    ):  # fmt: skip
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
