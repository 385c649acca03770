"""Records of graphics cards follow their schema, and the table of
docs/benchmark.md is made from them."""

import pytest
import torch
from support import DATA, cases, read_json, refusals
from support.pages import ROOT, marked
from support.training_runs import execute

from openclip_superclip.benchmark import gpu_checks, gpu_record
from openclip_superclip.benchmark.gpu_record import VERSION, Card, Step, card_table

RECORDS = sorted((ROOT / "docs/results/cards").glob("*.json"))


def card(record):
    """The content of a card.json; TypeError for other fields."""
    return Card(**{**record, "steps": [Step(**step) for step in record["steps"]]})


def test_every_record_is_valid_and_the_page_has_their_table():
    cards = [card(read_json(path)) for path in RECORDS]
    assert {card.version for card in cards} <= {VERSION}
    assert marked("benchmark.md", "table of cards") == card_table(cards)


def test_a_table_has_a_row_for_each_step_and_a_dash_where_the_memory_did_not_suffice():
    *_, small, large = card_table([card(read_json(DATA / "card.json"))]).splitlines()
    assert small.endswith("| ViT-B-32 | 128 | 100.0 | 102.0 | 1.020 | 8.00 | 8.25 | 1 of 2 |")
    assert large.endswith("| ViT-L-14 | 64 | – | – | – | – | – | 1 of 2 |")


def test_a_small_record_is_measured_on_a_cpu_and_is_valid(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_record, "CPU_SIZES", {"ViT-Ti-16-96": (1, 2)})
    printed = execute(f"benchmark --card --device cpu --out {tmp_path}")
    record = card(read_json(tmp_path / "card.json"))
    assert [step.batch for step in record.steps] == [1, 2]
    assert {*record.checks.values()} == {"passed"}
    assert card_table([record]) in printed


def test_a_wrong_result_fails_its_check_and_the_command(monkeypatch):
    plain = gpu_checks.plain_class_loss
    monkeypatch.setattr(gpu_checks, "plain_class_loss", lambda *inputs: 1.1 * plain(*inputs))
    monkeypatch.setattr(gpu_checks, "training_learns", lambda *_, **__: None)
    results = gpu_checks.run_checks("cpu")
    assert results.pop("class loss, fp32").startswith("losses differ by 9.1e-02, more than 1e-04")
    assert {name for name, result in results.items() if result != "passed"} == {
        "class loss, amp",
        "class loss, amp_bf16",
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@cases("flags, error", refusals("benchmark_card"))
def test_a_card_that_cannot_be_measured_is_refused_in_one_line(flags, error, tmp_path, refused):
    assert error in refused(tmp_path, f"benchmark --card {flags}", "--out", ".")
