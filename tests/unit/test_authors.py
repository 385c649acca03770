"""Losses, gradients, counts and imported checkpoints equal those of the
authors' code (golden/README.md)."""

import torch
from open_clip import ClipLoss
from safetensors.torch import load_file
from support import GOLDEN, cases, parametrize, read_json, write_json
from support.models import AUTHORS, AUTHORS_CONFIG, altered_authors, rounding
from support.three_steps import results_of
from support.training_runs import execute
from torch.testing import assert_close

import openclip_superclip as superclip
from openclip_superclip import SuperCLIPLoss, TokenStatistics, class_loss, plain_class_loss
from openclip_superclip.checkpoints.authors import RELEASED_BATCH
from openclip_superclip.method.head_input import encode_image

BOTH = parametrize("function", [class_loss, plain_class_loss])


def through_identity(function, logits, tokens, idf):
    """The losses [B] of given logits [B, V]: a head whose weight is the
    identity passes them on to the last bit."""
    vocab_size = logits.shape[1]
    return function(logits, torch.eye(vocab_size), torch.zeros(vocab_size), tokens, idf)


def replay(golden, function):
    """What one rank of the authors' run computed, recomputed: losses [S, B]
    and gradients, and the counts."""
    statistics = TokenStatistics(golden["logits"].shape[-1])
    losses, gradients = [], []
    for tokens, logits in zip(golden["text"], golden["logits"], strict=True):
        statistics.update(tokens)
        logits = logits.clone().requires_grad_()
        losses.append(through_identity(function, logits, tokens, statistics.idf()))
        losses[-1].mean().backward()
        gradients.append(logits.grad)
    return torch.stack(losses).detach(), torch.stack(gradients), statistics


def assert_counts_equal(statistics, golden, global_batch):
    """The authors keep the sum over steps of the batch mean of the labels;
    times the batch it is a count."""
    cap_fq, num_steps = golden["cap_fq"].squeeze(0), golden["num_samples"].squeeze()
    document_frequency = (cap_fq * global_batch).round()
    # a count, but for float32
    assert_close(cap_fq * global_batch, document_frequency, atol=1e-5, rtol=0)
    assert torch.equal(statistics.document_frequency, document_frequency.long())
    assert statistics.num_captions == num_steps * global_batch


@BOTH
def test_losses_gradients_and_counts_of_one_process_equal_the_authors(function):
    golden = load_file(GOLDEN / "class_loss.safetensors")
    losses, gradients, statistics = replay(golden, function)
    assert_close(gradients, golden["logits_grad"], atol=1e-7, rtol=0)
    assert_counts_equal(statistics, golden, global_batch=6)
    # of the sum of exponentials
    tolerance = rounding(golden["logits"].shape[-1])
    for step, class_losses in enumerate(losses):
        features = {name: golden[name][step] for name in ("image_features", "text_features")}
        found = SuperCLIPLoss(ClipLoss())(
            **features, logit_scale=torch.tensor(10.0), class_losses=class_losses, output_dict=True
        )
        for name in ("contrastive_loss", "class_loss"):
            assert_close(found[name], golden[name][step], atol=tolerance, rtol=tolerance)


@BOTH
def test_losses_and_counts_of_two_ranks_equal_the_authors(function, tmp_path):
    def compare(rank, world_size):
        golden = load_file(GOLDEN / f"class_loss_world2.rank{rank}.safetensors")
        losses, _, statistics = replay(golden, function)
        tolerance = rounding(golden["logits"].shape[-1])  # of the sum of exponentials
        assert_close(losses.mean(dim=1), golden["class_loss"], atol=tolerance, rtol=tolerance)
        assert_counts_equal(statistics, golden, global_batch=8)

    assert results_of(compare, 2, tmp_path / "ranks") == [None] * 2


# Imported checkpoints


@parametrize("custom_text", [False, True])  # OpenCLIP's two model classes
@torch.no_grad()
def test_features_scale_class_logits_losses_and_counts_equal_the_authors(custom_text, tmp_path):
    write_json(tmp_path / "m.json", read_json(AUTHORS_CONFIG) | {"custom_text": custom_text})
    command = f"export {AUTHORS} --model {tmp_path}/m.json --with-head --out"
    execute(command, tmp_path / "out")
    model = superclip.create_model_and_transforms(f"local-dir:{tmp_path}/out")[0].eval()
    golden = load_file(GOLDEN / "reference_tiny.io.safetensors")
    outputs = model(golden["image"], golden["text"])
    _, _, patch_mean = encode_image(model.visual, model.patch_tokens, golden["image"])
    outputs["class_logits"] = model.class_head.logits(patch_mean)
    outputs["logit_scale"] = outputs["logit_scale"].view(1)
    for name in ("image_features", "text_features", "logit_scale", "class_logits"):
        assert_close(outputs[name], golden[name], atol=1e-5, rtol=0)
    theirs = torch.load(AUTHORS, weights_only=True)["state_dict"]
    assert model.statistics.num_captions == theirs["module.num_samples"].item() * RELEASED_BATCH
    counts = (theirs["module.cap_fq"].flatten() * RELEASED_BATCH).round().long()
    assert torch.equal(model.statistics.document_frequency, counts)
    trained = model.train()(golden["image"], golden["text"])
    for name in ("image_features", "text_features"):
        assert_close(trained[name], golden[name], atol=1e-5, rtol=0)
    losses = through_identity(
        plain_class_loss, golden["class_logits"], golden["text"], model.statistics.idf()
    )
    assert_close(trained["class_losses"], losses, atol=1e-5, rtol=0)


REFUSED = {  # changes to the authors' file, or flags, and the error message
    "visual.novelty is [3], expected no such name": {"visual.novelty": torch.ones(3)},
    "document_frequency is [299], expected [300]": {"cap_fq": torch.ones(1, 299)},
    "text_decoder.mlp.0.weight is [2, 2], expected no such name": {
        "text_decoder.mlp.0.weight": torch.ones(2, 2)
    },
    "incomplete checkpoint of SuperCLIP's authors: it lacks": {"text_decoder.ln_mlp.weight": None},
    "num_samples contains NaN or infinity": {"num_samples": torch.full((1, 1), float("nan"))},
    "document_frequency contains 1,622,016; expected 0 to": {"cap_fq": torch.full((1, 300), 99.0)},
    "OpenCLIP has no model 'no-such-model'": "--model no-such-model",
    "--model: nowhere.json cannot be read": "--model nowhere.json",
}


@cases("reason, given", REFUSED)
def test_mismatches_are_refused_in_one_line_and_nothing_is_written(
    reason, given, tmp_path, refused
):
    file, flags = AUTHORS, given
    if isinstance(given, dict):
        file, flags = altered_authors(tmp_path, **given), ""
    command = f"export {file} --model {AUTHORS_CONFIG} --with-head --out out {flags}"
    assert reason in refused(tmp_path, command)
