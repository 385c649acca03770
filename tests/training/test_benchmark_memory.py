"""`superclip benchmark`: the memory that steps take, and what the command writes."""

import json

import pytest
import torch

from openclip_superclip.__main__ import main
from openclip_superclip.benchmark.head_cost import compute, make_inputs, peak_memory


def allocate(num_bytes):
    kept = torch.ones(2**20)

    def call():
        return torch.ones(num_bytes // 4).sum() + kept.sum()

    return call


def test_peak_memory_is_what_a_call_allocates_and_not_what_lay_there_before():
    assert peak_memory(allocate, 2**27, device="cpu") == pytest.approx(2**27, rel=0.1)


def prepare(name, batch, width, vocab):
    inputs = make_inputs(batch, width, vocab, "cpu")
    return lambda: compute(name, inputs)


@pytest.mark.slow
def test_the_class_loss_takes_a_third_of_the_memory_of_dense_targets_at_most():
    sizes = 1024, 64, 49408
    dense, ours = (peak_memory(prepare, name, *sizes, device="cpu") for name in ("dense targets", "class_loss"))
    assert ours <= 0.35 * dense


@pytest.mark.slow
def test_a_vocabulary_of_256000_takes_less_than_3_gb_above_its_weights():
    assert peak_memory(prepare, "class_loss", 1024, 768, 256_000, device="cpu") < 3e9


@pytest.mark.slow
def test_the_command_prints_the_ratios_and_writes_json_and_png(tmp_path, capsys):
    code = main([
        "benchmark", "--head-batch", "32", "--width", "16", "--vocab", "1000", "--repeats", "2",
        "--model", "ViT-S-32-alt", "--local-batch", "2", "--step-repeats", "1", "--out", str(tmp_path),
    ])  # fmt: skip
    printed = capsys.readouterr().out
    assert code == 0
    assert "| class_loss |" in printed
    assert "| with --superclip |" in printed
    report = json.loads((tmp_path / "benchmark.json").read_text())
    assert all(len(seconds) == 2 for seconds in report["head_seconds"].values())
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")
