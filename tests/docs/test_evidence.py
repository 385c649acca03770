"""What the pages say of the studies is what the studies wrote."""

import csv
import importlib.util
import json
import re
import statistics

import pytest
from support.pages import PAGES, ROOT

from openclip_superclip.studies.results import StudyResults
from openclip_superclip.studies.study import Study, read_study

RECORDED = {path.parent.name: path for path in sorted((ROOT / "docs" / "studies").glob("*/study.json"))}


def results(name: str) -> StudyResults:
    content = json.loads(RECORDED[name].read_text())
    study = content["study"]
    for field, cells in study["cells"].items():
        if isinstance(cells, dict):  # JSON's keys are text
            study["cells"] = {field: {json.loads(cell): fields for cell, fields in cells.items()}}
    return StudyResults(Study(**study), content["runs"], content["chosen"])


@pytest.mark.parametrize("name", RECORDED)
def test_the_files_of_a_study_hold_the_same(name):
    found, folder = results(name), RECORDED[name].parent
    assert f"{found.tables()}\n" == (folder / "study.md").read_text()
    assert found.csv() == (folder / "study.csv").read_text()
    rows = list(csv.DictReader((folder / "study.csv").read_text().splitlines()))
    assert len(rows) == len(found.records)
    assert (folder / "study.png").stat().st_size > 1000


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_study_is_the_shipped_one_but_for_its_number_of_seeds(name):
    recorded, shipped = results(name).study, read_study(name)
    assert recorded.seeds <= shipped.seeds
    for field in ("question", "primary", "recipe", "arms", "measures", "choose", "pairs", "cell_values"):
        assert getattr(recorded, field) == getattr(shipped, field), field


@pytest.mark.parametrize("name", RECORDED)
def test_evidence_tells_every_recorded_study_with_its_number_of_seeds_and_interval(name):
    found = results(name)
    arm, baseline = found.study.pairs[0]
    rows = [line for line in PAGES["docs/evidence.md"].splitlines() if f"`{name}`" in line and line.startswith("|")]
    told = str(found.difference(arm, baseline, found.study.cell_values[0], found.study.primary))
    assert [row for row in rows if told in row and f"n = {found.study.seeds}" in row]


def test_readmes_table_is_what_the_demo_printed():
    (table,) = re.findall(r"<!-- demo table -->\n(.*?)\n<!-- end", PAGES["README.md"], flags=re.DOTALL)
    assert table.strip() in results("demo").tables()
    assert results("demo").study.seeds == read_study("demo").seeds


def test_readmes_sentence_of_ten_seeds_is_what_their_study_found():
    found = results("one_batch")
    means = [found.spread(arm, None, found.study.primary).mean for arm in ("CLIP", "SuperCLIP")]
    difference = found.difference("SuperCLIP", "CLIP", None, found.study.primary)
    told = f"zero-shot went from {means[0]:.1f} to {means[1]:.1f}, {difference}"
    assert (found.study.seeds, told in " ".join(PAGES["README.md"].split())) == (10, True)


def test_the_trials_of_the_rates_are_the_recorded_means():
    trials = json.loads((ROOT / "docs/studies/one_batch/trials.json").read_text())
    for arm, cells in trials.items():
        means = {lr: statistics.mean(scores) for lr, scores in cells["None"].items()}
        best = max(means, key=means.get)
        told = [f"**{mean:.1f}**" if lr == best else f"{mean:.1f}" for lr, mean in sorted(means.items(), key=_rate)]
        assert f"| {arm} | {' | '.join(told)} |" in PAGES["docs/evidence.md"].splitlines()


def _rate(item: tuple[str, float]) -> float:
    return float(item[0])


def script(path: str):
    """A script of docs/ as a module."""
    place = ROOT / "docs" / path
    spec = importlib.util.spec_from_file_location(place.stem, place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_tuning_forgets_is_what_was_measured():
    told = script("forgetting/measure.py").table(ROOT / "docs/forgetting/forgetting.csv")
    assert told in PAGES["docs/own-data.md"]


def test_how_well_an_audit_finds_planted_errors_is_what_was_measured():
    recorded = json.loads((ROOT / "docs/audit/planted.json").read_text())["measured"]
    assert script("audit/measure.py").tables(recorded) in PAGES["docs/audit.md"]


def test_what_training_again_wins_back_is_what_was_measured():
    recorded = json.loads((ROOT / "docs/audit/train_again.json").read_text())
    assert script("audit/train_again.py").tables(recorded) in PAGES["docs/audit.md"]
