"""The benchmark: its counts are the paper's, its contenders agree, and the
class loss takes little memory."""

import ctypes

import pytest
import torch
from support import cases, refusals, table
from support.models import write_model
from transformers import RobertaConfig, RobertaModel

from openclip_superclip.benchmark.time_and_memory import (
    CONTENDERS,
    compute,
    gmacs_of,
    make_inputs,
    make_step,
    peak_memory,
    prepared_head,
)


@cases("model, vision, text, share, layers, width", table("plans: FLOPs of the paper"))
def test_the_head_adds_the_fraction_of_flops_that_the_paper_states(
    model, vision, text, share, layers, width
):
    counts = gmacs_of(model)
    # of 197 tokens
    gmacs, attention = counts["without_attention"], layers * 2 * 197**2 * width / 1e9
    # the paper's count holds norms and biases, too
    assert gmacs["vision"] == pytest.approx(vision, rel=2e-3)
    assert gmacs["text"] == pytest.approx(text, rel=2e-3)
    assert gmacs["head"] / (gmacs["vision"] + gmacs["text"]) == pytest.approx(share, rel=0.02)
    assert counts["all"]["vision"] - gmacs["vision"] == pytest.approx(attention, rel=1e-3)


def test_the_contenders_compute_the_same_gradients():
    inputs = make_inputs(batch=9, width=16, vocab_size=101, device="cpu")
    gradients = {}
    for name in CONTENDERS:
        compute(name, inputs)
        gradients[name] = [leaf.grad for leaf in inputs[:3]]
    for name in ("sparse targets", "class_loss"):
        for gradient, expected in zip(gradients[name], gradients["dense targets"], strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


def test_a_training_step_runs_with_a_small_vocabulary_and_a_roberta(tmp_path):
    small = write_model(tmp_path / "small", text={"vocab_size": 101})
    make_step(small, 2, "cpu", "fp32", with_head=True)()
    sizes = {"vocab_size": 101, "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 1}
    RobertaModel(RobertaConfig(**sizes, max_position_embeddings=22)).save_pretrained(
        tmp_path / "roberta/tower"
    )
    text = {
        "hf_model_name": f"{tmp_path}/roberta/tower",
        "hf_tokenizer_name": "none",
        "hf_pooler_type": "cls_pooler",
    }
    roberta = write_model(tmp_path / "roberta", text=text)
    make_step(roberta, 2, "cpu", "fp32", with_head=False)()


@cases("flags, error", refusals("benchmark"))
def test_models_and_sizes_that_cannot_be_measured_are_refused_in_one_line(
    flags, error, tmp_path, refused
):
    assert error in refused(tmp_path, f"benchmark {flags}", "--device", "cpu", "--out", ".")


def allocate(num_bytes):
    kept = torch.ones(2**20)
    return lambda: torch.ones(num_bytes // 4).sum() + kept.sum()


def test_peak_memory_is_what_a_call_allocates_and_the_class_loss_takes_a_third_of_dense_targets(
    forks,
):
    ctypes.CDLL(None).malloc_trim(0)  # else forks may use memory that other tests have freed
    assert peak_memory(allocate, 2**27, device="cpu") == pytest.approx(2**27, rel=0.1)
    sizes, names = (512, 16, 49408, "cpu", "fp32"), ("dense targets", "class_loss")
    dense, ours = (peak_memory(prepared_head, name, *sizes, device="cpu") for name in names)
    assert ours <= 0.35 * dense
