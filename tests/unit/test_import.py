"""The authors' checkpoints become models of ours that compute what theirs did."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from support import GOLDEN
from support.authors_files import CONFIG, THEIRS, altered

import openclip_superclip as superclip
from openclip_superclip.__main__ import main
from openclip_superclip.checkpoints.authors import from_authors
from openclip_superclip.method.patch_tokens import encode_image


def run(*argv) -> int:
    return main(["import", *map(str, argv)])


@pytest.fixture(scope="module", params=[False, True], ids=["CLIP", "custom text"])
def imported(request, tmp_path_factory):
    """The folder of an import into either of OpenCLIP's classes."""
    folder = tmp_path_factory.mktemp("imported")
    config = json.loads(CONFIG.read_text()) | {"custom_text": request.param}
    (folder / "authors-tiny.json").write_text(json.dumps(config))
    assert run(THEIRS, "--model", folder / "authors-tiny.json", "--out", folder / "out", "--global-batch", 48) == 0
    return folder / "out"


@torch.no_grad()
def test_features_scale_and_class_logits_equal_the_authors(imported):
    model = superclip.create_model_and_transforms(f"local-dir:{imported}")[0].eval()
    golden = load_file(GOLDEN / "reference_tiny.io.safetensors")
    outputs = model(golden["image"], golden["text"])
    for name in ("image_features", "text_features"):
        torch.testing.assert_close(outputs[name], golden[name], atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs["logit_scale"].view(1), golden["logit_scale"], atol=1e-5, rtol=0)
    _, patch_mean = encode_image(model.visual, model.patch_tokens, golden["image"])
    torch.testing.assert_close(model.class_head.logits(patch_mean), golden["class_logits"], atol=1e-5, rtol=0)


def test_running_means_become_counts_of_captions(imported):
    state = load_file(imported / "open_clip_model.safetensors")
    theirs = torch.load(THEIRS, weights_only=True)["state_dict"]
    assert state["statistics.num_captions"] == theirs["module.num_samples"].item() * 48
    counts = state["statistics.document_frequency"]
    assert counts.dtype == torch.int64
    assert torch.equal(counts, (theirs["module.cap_fq"].flatten() * 48).round().long())


@pytest.mark.parametrize("global_batch", [6, 16384, 10000])
def test_float32_means_give_back_every_count(global_batch):
    """Batches whose captions hold token i with a frequency of its own, averaged as the authors do."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(global_batch + 1, (50, 300), generator=generator)
    means = (counts.float() / global_batch).double().sum(dim=0, keepdim=True)
    head = {
        name: torch.zeros(1)
        for name in ("ln_mlp.weight", "ln_mlp.bias", "text_projection.weight", "text_projection.bias")
    }
    weights = {f"text_decoder.{name}": tensor for name, tensor in head.items()}
    ours = from_authors(weights | {"cap_fq": means, "num_samples": torch.tensor([[50.0]])}, global_batch)
    assert torch.equal(ours["statistics.document_frequency"], counts.sum(dim=0))
    assert ours["statistics.num_captions"] == 50 * global_batch


FITTING = {
    48: "",
    96: "every count is a multiple of 2; --global-batch 48",
    40: "gives counts that are not whole, --global-batch 48 gives",
}


@pytest.mark.parametrize(("given", "said"), FITTING.items(), ids=FITTING)
def test_a_global_batch_that_does_not_fit_is_told_with_the_one_that_does(given, said, tmp_path, capsys):
    counts = torch.arange(300) % 47
    file = altered(tmp_path, cap_fq=(counts.float() / 48).double()[None], num_samples=torch.ones(1, 1).double())
    assert run(file, "--model", CONFIG, "--out", tmp_path / "out", "--global-batch", given) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "--global-batch" in line]
    assert len(warnings) == bool(said)
    assert all(line.startswith("warning: ") and said in line and "{" not in line for line in warnings)


def test_a_vocabulary_smaller_than_the_tokenizers_is_told(tmp_path, capsys):
    assert run(THEIRS, "--model", CONFIG, "--out", tmp_path / "out") == 0
    assert "a vocabulary of 300 tokens and its tokenizer 49,406" in capsys.readouterr().err


def test_training_goes_on_from_an_import(imported):
    """The authors' vocabulary of 300 takes no captions of the tokenizer's: their own text is fed by hand."""
    model = superclip.create_model_and_transforms(f"local-dir:{imported}")[0]
    golden = load_file(GOLDEN / "reference_tiny.io.safetensors")
    before = model.statistics.num_captions.item()
    losses = model(golden["image"], golden["text"])["class_losses"]
    losses.mean().backward()
    assert losses.isfinite().all()
    assert model.statistics.num_captions == before + 4


DOES_NOT_MATCH = {
    "an unknown name": ({"visual.novelty": torch.ones(3)}, "visual.novelty is [3], expected no such name"),
    "a missing name": ({"visual.proj": None}, "visual.proj is missing, expected [64, 32]"),
    "an odd shape": ({"visual.proj": torch.ones(64, 31)}, "visual.proj is [64, 31], expected [64, 32]"),
    "another vocabulary": ({"cap_fq": torch.ones(1, 299)}, "document_frequency is [299], expected [300]"),
    "hidden layers": ({"text_decoder.mlp.0.weight": torch.ones(2, 2)}, "ours is one linear map: text_decoder.mlp.0"),
    "no head": ({"text_decoder.ln_mlp.weight": None}, "it lacks text_decoder.ln_mlp.weight"),
    "no statistics": ({"cap_fq": None}, "it lacks cap_fq"),
    "NaN": ({"num_samples": torch.full((1, 1), float("nan"))}, "num_samples holds NaN or infinity"),
    "two numbers of steps": ({"num_samples": torch.ones(2)}, "num_samples is [2], expected one number"),
    "negative steps": ({"num_samples": torch.full((1, 1), -2.0)}, "num_samples is -2"),
    "a negative count": ({"cap_fq": torch.full((1, 300), -0.5)}, "cap_fq of token 0 is -0.5; expected 0 to"),
    "more than all captions": ({"cap_fq": torch.full((1, 300), 99.0)}, "cap_fq of token 0 is 99; expected 0 to"),
    "whole numbers for weights": ({"visual.proj": torch.ones(64, 32).int()}, "visual.proj is int32, expected float32"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "reason"), DOES_NOT_MATCH.values(), ids=DOES_NOT_MATCH)
def test_what_does_not_match_is_refused_by_name_and_nothing_is_written(changes, reason, tmp_path, capsys):
    file = altered(tmp_path, **changes)
    assert run(file, "--model", CONFIG, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {file}")
    assert error.count("\n") == 1
    assert reason in error
    assert [path.name for path in tmp_path.iterdir()] == ["altered.pt"]


def test_of_many_mismatches_the_first_three_are_shown_with_both_shapes(tmp_path, capsys):
    config = json.loads(CONFIG.read_text())
    config["text_cfg"]["width"] = 24
    (tmp_path / "narrow.json").write_text(json.dumps(config))
    assert run(THEIRS, "--model", tmp_path / "narrow.json", "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "does not match" in error
    assert error.count(", expected [") == 3
    assert "more" in error
    assert error.count("\n") == 1


BAD_INPUT = {
    "--model no-such-model": "OpenCLIP knows no 'no-such-model'",
    "--model nowhere.json": "there is no file nowhere.json",
    "--model local-dir:nowhere": "local-dir:nowhere has no readable configuration",
    "--global-batch 0": "--global-batch is 0; expected 1 or more",
}


@pytest.mark.parametrize(("flags", "reason"), BAD_INPUT.items(), ids=BAD_INPUT)
def test_bad_options_are_refused_in_one_line(flags, reason, tmp_path, capsys):
    assert run(THEIRS, "--model", CONFIG, "--out", tmp_path / "out", *flags.split()) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_plain_checkpoint_is_not_the_authors(tmp_path, capsys):
    torch.save(open_clip.create_model("RN50", load_weights=False).state_dict(), tmp_path / "plain.pt")
    assert run(tmp_path / "plain.pt", "--model", "RN50", "--out", tmp_path / "out") == 1
    assert "no checkpoint of SuperCLIP's authors" in capsys.readouterr().err
